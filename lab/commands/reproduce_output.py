"""What `remamba reproduce` is given and writes: models by their role, and the output folder."""

from __future__ import annotations

import json as json_module
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from remamba.errors import InputError

if TYPE_CHECKING:
    from lab.commands.reproduce import Args

MARK = "recipe.json"
"""Tells which recipe a directory's runs are of."""


def given_models(args: Args, roles: Collection[str]) -> dict[str, str]:
    """Role -> what --models names for it.

    Raises:
        InputError: one is no ROLE=DIR.
    """
    found: dict[str, str] = {}
    for given in args.models:
        role, equals, place = given.partition("=")
        if not equals or role not in roles or not place:
            raise InputError(f"--models {given} is no ROLE=DIR; roles are {', '.join(roles)}")
        found[role] = place
    return found


def check_output(args: Args) -> None:
    """Raise InputError for an output directory that holds something else, or no --resume."""
    from remamba.files import check_directory, holds_nothing

    mark = args.output / MARK
    check_directory(args.output, f"--output {args.output}")
    if not args.output.is_dir() or holds_nothing(args.output):
        return
    if not mark.is_file():
        raise InputError(f"--output {args.output} holds other files; choose another directory")
    if not args.resume:
        raise InputError(f"--output {args.output} holds a recipe's runs; give --resume")
    was = json_module.loads(mark.read_text(encoding="utf-8"))
    if was != identity(args):
        raise InputError(
            f"--resume: {args.output} was begun as {was}; give the same, or another --output"
        )


def open_output(args: Args) -> None:
    """Makes the output directory, and notes in it what it is of.

    Raises:
        InputError: see `check_output`.
    """
    from remamba.files import make_directory, write_whole

    check_output(args)
    make_directory(args.output)
    write_whole(args.output / MARK, json_module.dumps(identity(args)) + "\n")


def identity(args: Args) -> dict[str, Any]:
    found = {"name": args.name, "scale": args.scale, "limit": args.limit}
    return {**found, "train": True} if args.train else found
