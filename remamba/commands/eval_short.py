"""`remamba eval short`: the six short tasks of Figure 1, through lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from remamba.commands.evaluation import RunOptions, load_reader
from remamba.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Args(RunOptions):
    """Ask multiple-choice tasks of lm-evaluation-harness, the six of Figure 1 unless others are
    named, by the likelihood of their answers. The harness fetches their data from the hub.

    A score is the accuracy; where the harness knows the accuracy by likelihood per character
    (acc_norm), it stands beside it. A run is made as a whole: there is nothing to resume.

    Example: remamba eval short --model models/remamba-130m --output runs/short
    """

    tasks: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Tasks of the harness in place of the six."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Only the first N questions of each."""
    shots: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the task's)")] = (
        None
    )
    """Solved examples before each question."""
    include: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder with task definitions of your own."""


def run(args: Args) -> int:
    """Asks the harness's tasks; writes and prints the scores."""
    from remamba.evals.predictions import FOLDER
    from remamba.evals.readers import describe_model
    from remamba.evals.run_folder import RunFolder
    from remamba.evals.scoring import SCORES_FILE
    from remamba.evals.tables import table
    from remamba.files import make_directory, write_whole
    from remamba.pretrained import quiet_transformers
    from remamba.provenance import commit, versions

    args.check()
    if args.resume:
        raise InputError("--resume: short tasks are run as a whole; give --overwrite")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit} must be at least 1")
    folder = RunFolder(args.output, overwrite=args.overwrite)
    try:
        from remamba.evals.harness import SHORT_TASKS, run_tasks
    except ImportError as error:
        raise InputError(
            f"short tasks need lm-evaluation-harness ({error}); pip install 'remamba[eval]'"
        ) from error
    names = args.tasks or SHORT_TASKS
    # the harness must not write among our own lines
    with quiet_transformers(), contextlib.redirect_stdout(sys.stderr):
        reader, method = load_reader(args)
        found = run_tasks(
            reader,
            method,
            names,
            limit=args.limit,
            shots=args.shots,
            include=args.include,
            seed=args.seed,
        )
    entries = {name: _entry(name, found) for name in names}
    average = sum(entry["score"] for entry in entries.values()) / len(entries)
    scores = {"task": "short", "average": average, "datasets": entries}
    model = describe_model(reader.model, method)
    folder.prepare(
        {
            "task": "short",
            "model": args.reading.model,
            **model,
            "datasets": list(names),
            "limit": args.limit,
            "shots": args.shots,
            "seed": args.seed,
        },
        {
            "command": ["remamba", *sys.argv[1:]],
            "versions": versions("lm_eval"),
            "commit": commit(),
            "device": model["device"],
        },
    )
    make_directory(args.output / FOLDER)
    for name in names:
        rows = [json_module.dumps(_row(sample)) for sample in found["samples"][name]]
        write_whole(args.output / FOLDER / f"{name}.jsonl", "\n".join(rows) + "\n")
    write_whole(args.output / SCORES_FILE, json_module.dumps(scores, indent=2) + "\n")
    lines = [(n, e["n"], e["score"], e.get("acc_norm")) for n, e in entries.items()]
    lines.append(("average", sum(e["n"] for e in entries.values()), average, None))
    said = table(("task", "n", "accuracy", "acc_norm"), lines)
    write_whole(args.output / "report.md", f"# short\n\n{said}\n")
    folder.finish()
    print(json_module.dumps(scores) if args.json else said)
    return 0


def _entry(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A task's accuracy, times 100.

    Raises:
        InputError: the task has none.
    """
    result = {key.split(",")[0]: value for key, value in found["results"][name].items()}
    if "acc" not in result:
        raise InputError(f"--tasks {name} has no accuracy; choose multiple-choice tasks")
    entry = {"score": 100 * result["acc"], "n": len(found["samples"][name])}
    return entry | ({"acc_norm": 100 * result["acc_norm"]} if "acc_norm" in result else {})


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    """A question as it is written: the likeliest answer's number, and each answer's likelihood."""
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    return {
        "id": str(sample["doc_id"]),
        "pred": str(likelihoods.index(max(likelihoods))),
        "answers": [str(sample["target"])],
        "log_likelihoods": likelihoods,
    }
