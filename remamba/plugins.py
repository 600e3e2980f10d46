"""What installed packages add to this one, found by their entry points.

A package names objects in its `pyproject.toml`; nothing here names a package:

    [project.entry-points."remamba.commands"]   a dict like `remamba.cli.COMMANDS`
    [project.entry-points."remamba.tasks"]      a `remamba.evals.tasks.Task`
    [project.entry-points."remamba.models"]     a folder that holds a folder for each model
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from remamba.errors import InputError


@cache
def found(kind: str) -> tuple[Any, ...]:
    """The objects that packages bring under `remamba.<kind>`, in the order of their names.

    Raises:
        InputError: one of them cannot be imported.
    """
    objects = []
    for entry in sorted(entry_points(group=f"remamba.{kind}"), key=lambda entry: entry.name):
        try:
            objects.append(entry.load())
        except (ImportError, AttributeError) as error:
            package = entry.dist.name if entry.dist is not None else entry.name
            raise InputError(
                f"the package {package} brings {kind} that cannot be imported ({error}); install "
                f"it again, or remove it: pip uninstall {package}"
            ) from error
    return tuple(objects)
