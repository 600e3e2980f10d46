"""Options of a command that are the fields of a settings class, so that the two cannot drift."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

from tyro.conf import arg


def field_docs(settings: type) -> dict[str, str]:
    """What stands below each field of a dataclass, by the field's name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, behind in zip(body.body, body.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            found[node.target.id] = inspect.cleandoc(str(behind.value.value))
    return found


def changes_of(settings: type, base: type, metavars: Mapping[str, str], hint: str) -> Any:
    """A dataclass with the fields of `base`, then those of `settings`, None where not given.

    Args:
        metavars: what stands for a field's value in the help, by the field's name.
        hint: what the help says of a field that is not given.
    """
    docs, types = field_docs(settings), get_type_hints(settings)
    fields = []
    for each in dataclasses.fields(settings):
        help_ = " ".join(docs[each.name].split())
        options: dict[str, Any] = {
            "help": help_,
            "help_behavior_hint": hint,
            "metavar": metavars[each.name],
        }
        kind: Any = types[each.name]
        kind = Annotated.__class_getitem__((kind | None, arg(**options)))  # type: ignore[attr-defined]
        fields.append((each.name, kind, dataclasses.field(default=None, kw_only=True)))
    name = f"{base.__name__}With{settings.__name__}"
    return dataclasses.make_dataclass(name, fields, bases=(base,), frozen=True)


def given(options: Any, settings: type) -> dict[str, Any]:
    """The fields of the settings class that the options give, by name."""
    values = {each.name: getattr(options, each.name) for each in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value is not None}
