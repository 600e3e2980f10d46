"""`remamba bench ...`: speed and memory, beside plain Mamba and the peers, in one run."""

from __future__ import annotations

import importlib
import json
import sys

from lab.bench.settings import Fig6Args, GapsArgs, GenerateArgs, LongArgs, OpsArgs, StepArgs

MODULES = {
    OpsArgs: "ops",
    GenerateArgs: "generate",
    StepArgs: "step",
    LongArgs: "long",
    GapsArgs: "gaps",
    Fig6Args: "fig6",
}


def run(args: OpsArgs | GenerateArgs | StepArgs | LongArgs | GapsArgs | Fig6Args) -> int:
    """Runs one benchmark: table and progress on stderr, the report as stdout's one line of JSON.

    Returns 1, and tells no speed, when a contender computes something else.
    """
    from lab.bench.check import WrongResults
    from lab.bench.report import compact

    module = importlib.import_module(f"lab.bench.{MODULES[type(args)]}")
    try:
        report = module.run(args)
    except WrongResults as error:
        print(f"remamba: {error}", file=sys.stderr)
        return 1
    print(json.dumps(compact(report)))
    return 0
