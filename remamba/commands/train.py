"""`remamba train`: train a ReMamba, or a plain Mamba on the same data."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any, get_type_hints

from tyro.conf import OmitArgPrefixes

from remamba.train.config import GROUPS, RecipeName, TrainArgs, TrainMethod
from remamba.train.recipes import recipe_options


@dataclass(frozen=True)
class Choice:
    """What the defaults of all other options hang on; the command line is read for it first."""

    recipe: RecipeName = "none"
    method: TrainMethod = "remamba"


def args_type(choice: Choice) -> type:
    """TrainArgs as a command line is read: a dataclass of its groups, with a recipe's defaults."""
    values = {**recipe_options(choice.recipe, choice.method), **dataclasses.asdict(choice)}
    groups = []
    for group in GROUPS:
        hints = get_type_hints(group, include_extras=True)
        changed = [
            (name, hint, dataclasses.field(default=values[name]))
            for name, hint in hints.items()
            if name in values
        ]
        about = {"__module__": group.__module__, "__doc__": group.__doc__}
        own = dataclasses.make_dataclass(
            group.__name__, changed, bases=(group,), namespace=about, frozen=True, kw_only=True
        )
        groups.append((group.__name__.lower(), OmitArgPrefixes[own]))  # type: ignore
    about = {"__module__": __name__, "__doc__": TrainArgs.__doc__}
    return dataclasses.make_dataclass("Args", groups, namespace=about, frozen=True)


def train_args(args: Any) -> TrainArgs:
    """What was read into `args_type`; what stayed at its default counts as not given."""
    groups = [getattr(args, field.name) for field in dataclasses.fields(args)]
    fields = [(group, field) for group in groups for field in dataclasses.fields(group)]
    values = [(field, getattr(group, field.name)) for group, field in fields]
    given = {field.name: value for field, value in values if value != field.default}
    return TrainArgs(**{"recipe": groups[0].recipe, "method": groups[0].method, **given})


def run(args: Any) -> int:
    """Trains; prints the summary as one JSON object, or as a sentence on stderr."""
    given = train_args(args)
    from remamba.train.progress import is_main_process, leave_processes
    from remamba.train.run import train

    summary = train(given)
    leave_processes()
    if not is_main_process():
        return 0
    if given.json:
        print(json.dumps(summary))
    else:
        accuracy = summary["accuracy"]
        said = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
        print(
            f"{summary['steps']} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s "
            f"({summary['tokens_per_second']:,} a second), at most {summary['memory_gib']:.1f} GiB"
            f"{said} ({summary['stopped']}); the model is in {given.output}",
            file=sys.stderr,
        )
    return 0
