"""`remamba eval score`: predictions that lie in a folder are scored; no model is needed."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Args:
    """Score the predictions in OUTPUT/predictions as the benchmark's own evaluator does.

    A file is named after its dataset (qasper.jsonl) and holds one object a line: pred, answers,
    and for LongBench-E all_classes and length; L-Eval's own files (gt, <model>_pred) are read too.

    Example: remamba eval score --task longbench-e --output runs/mine
    """

    task: Literal["longbench-e", "leval", "needle", "planted"]
    """Which benchmark the predictions are of."""
    output: Annotated[Path, arg(metavar="DIR")]
    """The folder that holds predictions/; scores.json and a report are written there."""
    scoring: Literal["official", "authors"] = "official"
    """L-Eval: authors gives 0.25 to an empty choice, as the ReMamba authors' evaluator does."""
    json: bool = False
    """Print scores.json in place of a table."""


def run(args: Args) -> int:
    """Scores, writes scores.json and the report, prints the scores."""
    from remamba.evals.report import write_report
    from remamba.evals.scoring import score_folder, write_scores
    from remamba.evals.tables import score_table
    from remamba.evals.tasks import find_task

    scored = score_folder(find_task(args.task), args.output, args.scoring)
    write_scores(scored, args.output)
    write_report(scored, args.output)
    print(json_module.dumps(scored.to_dict()) if args.json else score_table(scored))
    return 0
