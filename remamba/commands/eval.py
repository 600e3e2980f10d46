"""`remamba eval`: a benchmark is predicted, then scored; any causal model can be asked."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from remamba.commands.model_options import ModelOptions, resolve_device, resolve_dtype
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.evals.items import DataFolder, Item
    from remamba.evals.prompting import Prompting
    from remamba.evals.readers import Reader
    from remamba.evals.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Args:
    """Ask a model a benchmark's questions and score its answers; a kill loses nothing (--resume).

    The data are the benchmark's own files in a folder: for longbench-e NAME_e.jsonl, for leval
    NAME.jsonl, either packed as .gz. The model is a ReMamba, or any transformers causal model.
    `remamba eval score` scores again without a model, `remamba eval compare` sets two runs side
    by side.

    Example: remamba eval leval --data LEval/Closed-ended-tasks --limit 10 --output runs/tiny
    """

    task: Annotated[Positional[Literal["longbench-e", "leval"]], arg(metavar="TASK")]
    """longbench-e or leval."""
    data: Annotated[Path, arg(metavar="DIR")]
    """The folder of the data files."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Where predictions, scores and reports go."""
    datasets: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Only these datasets (default: all whose files are there)."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Only the first N questions of each."""
    max_length: Annotated[int, arg(metavar="N")] = 6000
    """Tokens of a prompt and the room for its answer."""
    protocol: Literal["authors", "official"] = "authors"
    """Prompts and cuts: as the ReMamba authors, or as the benchmark's own scripts."""
    scoring: Literal["official", "authors"] = "official"
    """L-Eval: authors gives 0.25 to an empty choice, as the ReMamba authors' evaluator does."""
    baseline: Literal["none", "truncate", "bm25"] = "none"
    """What is left of a document first: its last tokens, or chunks that BM25 finds."""
    baseline_tokens: Annotated[int, arg(metavar="N")] = 2000
    """How many tokens a baseline leaves."""
    slots: Annotated[int, arg(metavar="N")] = 8
    """Prompts that a ReMamba answers at once."""
    seed: int = 0
    """Seed of the random selector."""
    resume: bool = False
    """Go on with the run in the output directory."""
    retry_failed: bool = False
    """With --resume: ask again what failed."""
    overwrite: bool = False
    """Replace the run in the output directory."""
    json: bool = False
    """Print scores.json in place of a table."""
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(args: Args) -> int:
    """Predicts, scores, reports; prints the scores."""
    from remamba.environment import commit, quiet_transformers, versions
    from remamba.evals.items import DataFolder
    from remamba.evals.prompting import Prompting
    from remamba.evals.report import write_report
    from remamba.evals.run_folder import RunFolder
    from remamba.evals.runner import predict, say
    from remamba.evals.scoring import score_folder, write_scores
    from remamba.evals.tables import score_table
    from remamba.evals.tasks import find_task

    _check(args)
    task = find_task(args.task)
    folder = RunFolder(args.output, resume=args.resume, overwrite=args.overwrite)
    data = DataFolder(args.data)
    items = _items(args, task, data)
    with quiet_transformers():
        reader = _reader(args)
        prompting = Prompting(
            reader.tokenizer,
            task.name,
            args.protocol,
            args.max_length,
            args.baseline,
            args.baseline_tokens,
        )
        _check_positions(args, reader, prompting, items)
        described = reader.describe()
        folder.prepare(
            _settings(args, data, items, described),
            {
                "command": ["remamba", *sys.argv[1:]],
                "versions": versions(),
                "commit": commit(),
                "device": described["device"],
                "protocol": prompting.describe(),
            },
        )
        say(f"{sum(map(len, items.values()))} questions; {prompting.describe()}")
        failed = predict(args.output, items, reader, prompting, retry_failed=args.retry_failed)
    if failed:
        say(f"{failed} predictions failed and count as zero; --resume --retry-failed asks again")
    scored = score_folder(task, args.output, args.scoring)
    write_scores(scored, args.output)
    folder.finish(failed=failed)
    write_report(scored, args.output)
    print(json_module.dumps(scored.to_dict()) if args.json else score_table(scored))
    return 0


def _check(args: Args) -> None:
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit} must be at least 1")
    if args.slots < 1:
        raise InputError(f"--slots {args.slots} must be at least 1")
    if args.retry_failed and not args.resume:
        raise InputError("--retry-failed asks again what failed in a run; give --resume too")


def _items(args: Args, task: Task, data: DataFolder) -> dict[str, list[Item]]:
    """The questions of each dataset that is asked for and there."""
    if unknown := [name for name in args.datasets if name not in task.datasets]:
        raise InputError(
            f"--datasets {unknown[0]} is none of {task.name}'s: {', '.join(task.datasets)}"
        )
    found: dict[str, list[Item]] = {}
    for name in task.datasets:
        if args.datasets and name not in args.datasets:
            continue
        items = task.read_items(data, name, args.protocol)
        if items is not None:
            found[name] = items[: args.limit]
        elif args.datasets:
            raise InputError(f"--data {args.data} lacks the file of {name}; see --help for names")
    if not found:
        raise InputError(f"--data {args.data} holds no file of {task.name}; see --help for names")
    return found


def _reader(args: Args) -> Reader:
    """The model that answers.

    Raises:
        InputError: there is none, or options were given that it does not know.
    """
    from transformers import AutoModelForCausalLM, PretrainedConfig

    from remamba.evals.readers import ReMambaReader, TransformersReader
    from remamba.pretrained import locate
    from remamba.text import load_tokenizer

    options = args.reading
    place = locate(options.model)
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise InputError(f"--model {place} holds no config.json, so it is no model directory")
    try:
        kind = PretrainedConfig.get_config_dict(place)[0].get("model_type")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {options.model} cannot be read ({reason})") from error
    if kind == "remamba":
        loaded = options.load()
        return ReMambaReader(
            loaded.model,
            loaded.tokenizer,
            options.compression(loaded.model.config),
            slots=args.slots,
            piece_length=loaded.piece_length,
            seed=args.seed,
        )
    if given := set(options.changes()) - {"num_kept"}:
        raise InputError(
            f"--{min(given).replace('_', '-')} is for ReMamba models, and {options.model} is a "
            f"{kind}; leave it out, or convert the model (remamba convert)"
        )
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {options.model} cannot be loaded ({reason})") from error
    return TransformersReader(model.to(device), load_tokenizer(place, model.config.vocab_size))


def _check_positions(
    args: Args, reader: Reader, prompting: Prompting, datasets: Iterable[str]
) -> None:
    """Refuse prompts and answers that together are more than the model's positions."""
    from remamba.evals.prompting import new_tokens

    positions = getattr(reader.model.config, "max_position_embeddings", None)
    longest = max(new_tokens(args.task, args.protocol, name) for name in datasets)
    if positions is not None and prompting.limit + longest > positions:
        most = args.max_length + positions - prompting.limit - longest
        raise InputError(
            f"--max-length {args.max_length} is too long for {args.reading.model}, which has "
            f"{positions} positions; give --max-length {most} or less"
        )


def _settings(
    args: Args, data: DataFolder, items: dict[str, list[Item]], described: dict[str, Any]
) -> dict[str, Any]:
    """What makes the predictions what they are."""
    return {
        "task": args.task,
        "model": args.reading.model,
        "kind": described["kind"],
        "fingerprint": described["fingerprint"],
        "dtype": described["dtype"],
        "compression": described["compression"],
        "datasets": list(items),
        "limit": args.limit,
        "max_length": args.max_length,
        "protocol": args.protocol,
        "baseline": args.baseline,
        "baseline_tokens": args.baseline_tokens if args.baseline != "none" else None,
        "seed": args.seed,
        "data": data.hashes,
    }
