"""`remamba eval compare`: two runs on the same questions, as a paired table."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Args:
    """Set two scored runs side by side, question by question.

    Example: remamba eval compare runs/mamba runs/remamba
    """

    runs: Annotated[Positional[tuple[Path, Path]], arg(metavar="RUN RUN")]
    """Two output directories of remamba eval, or of remamba eval score."""
    json: bool = False
    """Print one JSON object in place of a table."""


def run(args: Args) -> int:
    """Prints the comparison."""
    from remamba.evals.comparison import compare, comparison_table, load_run

    first, second = map(load_run, args.runs)
    found = compare(first, second)
    if args.json:
        pairs = {name: pair._asdict() for name, pair in found["datasets"].items()}
        print(json_module.dumps({**found, "datasets": pairs}))
        return 0
    names = (args.runs[0].name, args.runs[1].name)
    print(comparison_table(found, names if names[0] != names[1] else ("first", "second")))
    return 0
