"""`remamba eval planted`: questions about planted data, asked under many conditions at once."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from remamba.commands.model_options import ModelOptions
from remamba.errors import InputError

if TYPE_CHECKING:
    from lab.asked.conditions import Condition
    from remamba import Reader
    from remamba.evals.run_folder import RunFolder
    from remamba.evals.scoring import ScoredRun


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How planted data are asked, whichever they are."""

    output: Annotated[Path, arg(metavar="DIR")]
    """Where everything goes; each condition is a run in a folder of its own."""
    plain: Annotated[str | None, arg(metavar="NAME|DIR", help_behavior_hint="")] = None
    """A model trained as plain Mamba, for the conditions plain-*."""
    conditions: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Which conditions (default: all that the models given allow)."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Only the first N documents of each task and length."""
    lengths: Annotated[tuple[int, ...], arg(metavar="N ...")] = (
        500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000,
    )  # fmt: skip
    """Lengths that are reported, in tokens; a document counts with the nearest."""
    middle_tokens: Annotated[int, arg(metavar="N")] = 2000
    """Tokens of a document that plain-middle leaves: its first and its last half of them."""
    last_tokens: Annotated[int, arg(metavar="N")] = 500
    """Tokens of a document that plain-last leaves."""
    bm25_tokens: Annotated[int, arg(metavar="N")] = 500
    """Tokens of a document that plain-bm25, model-bm25 and two-stage-bm25 leave."""
    chunk_tokens: Annotated[int, arg(metavar="N")] = 500
    """Most tokens of a chunk of plain-chunks*."""
    filter_rule: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The table of plain-filter, made for the plain model by remamba calibrate."""
    scale_rule: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The table of plain-scale."""
    decimate_tokens: Annotated[int, arg(metavar="N")] = 2000
    """Most tokens of a document that plain-decimate leaves in the later layers."""
    lengths_p: Annotated[tuple[float, ...], arg(metavar="P ...", help_behavior_hint="")] = ()
    """With --keep-ratios: two-stage at each of these span lengths p, as a map."""
    keep_ratios: Annotated[tuple[float, ...], arg(metavar="R ...", help_behavior_hint="")] = ()
    """With --lengths-p: the keep ratios rho of the map."""
    slots: Annotated[int, arg(metavar="N")] = 32
    """Questions that are answered at once."""
    seed: int = 0
    """Seed of the random selector."""
    resume: bool = False
    """Go on with the run in the output directory; conditions may be added."""
    overwrite: bool = False
    """Replace the run in the output directory."""
    json: bool = False
    """Print scores.json in place of a table."""
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)

    def check(self) -> None:
        """Raise InputError for values outside their range."""
        leasts = {
            "limit": 1, "middle_tokens": 2, "last_tokens": 1, "bm25_tokens": 1, "chunk_tokens": 32,
            "decimate_tokens": 1, "slots": 1,
        }  # fmt: skip
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
        if self.plain is None and (tables := self.tables()):
            flag = next(iter(tables)).removeprefix("plain-")
            raise InputError(f"--{flag}-rule is for the plain model; give --plain DIR, or leave it")
        if not self.lengths or min(self.lengths) < 1:
            raise InputError("--lengths needs whole numbers of at least 1")

    def tables(self) -> dict[str, str]:
        """Condition -> the file of its table, of those given."""
        given = {"plain-filter": self.filter_rule, "plain-scale": self.scale_rule}
        return {name: file for name, file in given.items() if file is not None}


@dataclass(frozen=True, kw_only=True)
class Args(Asking):
    """Ask a model about planted data (remamba data build planted), and its controls beside it.

    All conditions get the same questions; one reading of a document serves all that can share it.
    Conditions: two-stage (the model as it is), stage1 (compression off), random, fixed, drop (other
    choices of what is kept), plain, plain-drop20, plain-middle, plain-last, plain-bm25 (a plain
    model, the document whole or shortened), plain-chunks, plain-chunks-bm25 and their controls
    -random and -oracle (in chunks), plain-twice (given twice), plain-filter, plain-scale,
    plain-decimate (by layer rules; the first two need a table that remamba calibrate made),
    model-bm25, two-stage-bm25 (the model on what BM25 finds, read once, or with its own
    compression), constant (the most frequent answer).

    Example: remamba eval planted --data test.jsonl --model runs/mine --plain runs/plain --output e
    """

    data: Annotated[tuple[Path, ...], arg(metavar="F ...")]
    """Files of planted rows (JSON lines, also as .gz or .xz)."""


def run(args: Args) -> int:
    """Asks, scores, reports; prints the scores as a table."""
    return ask(args, args.data)


def ask(args: Asking, data: Sequence[Path]) -> int:
    """Asks about files of planted rows; prints the scores as a table."""
    from lab.asked.conditions import WORDS, make_conditions, map_conditions
    from lab.asked.report import WRITTEN, score_table, write_summary
    from lab.asked.run import PlantedRun
    from lab.asked.summary import score_conditions
    from lab.asked.tasks import read_documents
    from remamba.evals.run_folder import RECORD_FILE, RunFolder, read_record
    from remamba.evals.runner import say
    from remamba.methods.remamba import ReMamba
    from remamba.pretrained import quiet_transformers
    from remamba.provenance import commit, device_name, versions

    args.check()
    written = (RECORD_FILE, *WRITTEN, *WORDS, "map")
    folder = RunFolder(args.output, resume=args.resume, overwrite=args.overwrite, written=written)
    documents, hashes = read_documents(data, args.lengths, args.limit)
    with quiet_transformers():
        readers = {"model": args.reading.load(slots=args.slots)}
        if args.plain is not None:
            readers["plain"] = args.reading.load(args.plain, args.slots)
        method = args.reading.chosen(readers["model"])
        own = method.compression if isinstance(method, ReMamba) else None
        conditions = make_conditions(
            args.conditions or None,
            own,
            has_plain=args.plain is not None,
            middle=args.middle_tokens,
            last=args.last_tokens,
            bm25=args.bm25_tokens,
            chunks=args.chunk_tokens,
            decimate=args.decimate_tokens,
            tables=args.tables(),
        )
        check_models(conditions, readers)
        conditions += map_conditions(own, args.lengths_p, args.keep_ratios)
        device = readers["model"].model.device
        settings = {
            "task": "planted",
            **{name: describe(found) for name, found in readers.items()},
            "lengths": list(args.lengths),
            "limit": args.limit,
            "seed": args.seed,
            "data": hashes,
        }
        facts = {
            "command": ["remamba", *sys.argv[1:]],
            "versions": versions(),
            "commit": commit(),
            "device": device_name(device),
            "slots": args.slots,
        }
        folder.prepare(settings, facts)
        runs = prepare_folders(args.output, conditions, settings, facts, resume=args.resume)
        count = sum(len(document.questions) for document in documents)
        say(f"{len(documents)} documents, {count} questions, {len(conditions)} conditions")
        PlantedRun(args.output, conditions, documents, readers, args.seed).run()
    scored = score_conditions(args.output, conditions)
    for condition in conditions:
        finish_folder(runs[condition.name], scored[condition.name])
    folder.finish()
    summary = write_summary(args.output, conditions, scored, read_record(args.output))
    print(json_module.dumps(summary) if args.json else score_table(summary))
    return 0


def check_models(conditions: Sequence[Condition], readers: dict[str, Reader]) -> None:
    """Raise InputError, before any question is asked, where a model cannot read as it is to."""
    for condition in conditions:
        if condition.answers_by in readers:
            condition.method.check(readers[condition.answers_by].model)


def describe(loaded: Reader) -> dict[str, Any]:
    """A model for run.json: `name`, `kind`, `dtype`, `fingerprint`."""
    from remamba.evals.readers import describe_model
    from remamba.methods.plain import Plain

    found = describe_model(loaded.model, Plain())
    return {"name": loaded.name, **{key: found[key] for key in ("kind", "dtype", "fingerprint")}}


def prepare_folders(
    output: Path,
    conditions: Sequence[Condition],
    settings: dict[str, Any],
    facts: dict[str, Any],
    *,
    resume: bool,
) -> dict[str, RunFolder]:
    """The folder of each condition, each a run that `eval score` and `eval compare` read.

    Args:
        settings: of the run, with each model's description under its Condition.answers_by.
        facts: what else is told.

    Raises:
        InputError: a folder holds a run that cannot be resumed with these settings.
    """
    from remamba.evals.run_folder import RunFolder

    folders = {}
    for condition in conditions:
        folder = RunFolder(output / condition.folder, resume=resume)
        own = {name: settings[name] for name in ("task", "lengths", "limit", "data")}
        if condition.answers_by in settings:
            own |= {"weights": settings[condition.answers_by]}
            own["model"] = own["weights"]["name"]
        if condition.method.draws:
            own |= {"seed": settings["seed"]}
        folder.prepare({**own, **condition.settings()}, {**facts, "protocol": condition.words})
        folders[condition.name] = folder
    return folders


def finish_folder(folder: RunFolder, scored: ScoredRun) -> None:
    """Writes a condition's scores and report, and notes that it is complete."""
    from remamba.evals.report import write_report
    from remamba.evals.scoring import write_scores

    write_scores(scored, folder.path)
    folder.finish(failed=0)
    write_report(scored, folder.path, with_figure=False)
