"""`remamba eval evidence`: the runs of recipes/evidence.py, put together over their seeds."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from remamba.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Put the runs of recipes/evidence.py together: means over seeds, differences, links, cost.

    Every answer is scored again. Intervals are of a bootstrap over documents; a branch that lacks
    seeds is reported with those it has, a run that is not finished is left out.

    Example: remamba eval evidence evidence/mamba-10m --main few-relative --output evidence/report
    """

    families: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="DIR ...", help_behavior_hint="(required)")
    ]
    """Folders of models by recipes/evidence.py, such as OUT/mamba2-10m."""
    main: Annotated[str, arg(metavar="BRANCH")]
    """The form that all else is compared with, such as window-relative."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Where report.md, evidence.json and the figures go."""
    split: str = "test"
    """Which answers: those in asked-SPLIT."""
    resume: bool = False
    """Report the same folders again, with the runs that finished since."""
    overwrite: bool = False
    """Replace the report in the output directory."""
    json: bool = False
    """Print evidence.json in place of tables."""


def run(args: Args) -> int:
    """Writes the report; prints the scores of facts and retrieval."""
    from lab.evidence.report import WRITTEN, score_tables, write_evidence
    from lab.evidence.runs import load_family
    from lab.evidence.summary import SHOWN, summarise_family
    from remamba.evals.run_folder import RECORD_FILE, RunFolder
    from remamba.provenance import commit, versions

    if not args.families:
        raise InputError("give at least one folder of models by recipes/evidence.py")
    names = [path.resolve().name for path in args.families]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two folders are named {twice[0]}; give each family once")
    folder = RunFolder(
        args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        written=(RECORD_FILE, *WRITTEN),
    )
    families = {}
    for path, name in zip(args.families, names, strict=True):
        family = load_family(path, args.main, args.split)
        if family.left_out:
            reasons = (f"{', '.join(runs)} ({why})" for why, runs in family.left_out.items())
            print(f"{name}: left out: {'; '.join(reasons)}", file=sys.stderr)
        families[name] = summarise_family(family, args.main)
    settings = {
        "task": "evidence",
        "families": [str(path) for path in args.families],
        "main": args.main,
        "split": args.split,
    }
    facts = {"command": ["remamba", *sys.argv[1:]], "versions": versions(), "commit": commit()}
    folder.prepare(settings, facts)
    summary = {"task": "evidence", "split": args.split, "main": args.main, "families": families}
    write_evidence(args.output, summary)
    folder.finish()
    if args.json:
        print(json_module.dumps(summary))
    else:
        for name, entry in families.items():
            print("\n\n".join([f"## {name}", *score_tables(entry, SHOWN)]) + "\n")
    return 0
