"""`remamba train`: train a ReMamba, or a plain Mamba on the same data."""

from __future__ import annotations

import json
import sys

from remamba.train.config import TrainArgs as Args
from remamba.train.recipes import args_type

__all__ = ["Args", "args_type", "run"]


def run(args: Args) -> int:
    """Trains; prints the summary as one JSON object, or as a sentence on stderr."""
    from remamba.train.progress import is_main_process
    from remamba.train.run import train

    summary = train(args)
    if not is_main_process():
        return 0
    if args.json:
        print(json.dumps(summary))
    else:
        accuracy = summary["accuracy"]
        said = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
        print(
            f"{summary['steps']} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s "
            f"({summary['tokens_per_second']:,} a second), at most {summary['memory_gib']:.1f} GiB"
            f"{said} ({summary['stopped']}); the model is in {args.output}",
            file=sys.stderr,
        )
    return 0
