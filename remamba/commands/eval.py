"""`remamba eval`: a benchmark is predicted, then scored; any causal model can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from remamba.commands.evaluation import RunOptions, carry_out
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.evals.items import DataFolder, Item
    from remamba.evals.prompting import Prompting
    from remamba.evals.readers import AnsweringModel
    from remamba.evals.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Args(RunOptions):
    """Ask a model a benchmark's questions and score its answers; a kill loses nothing (--resume).

    The data are the benchmark's own files in a folder: for longbench-e NAME_e.jsonl, for leval
    NAME.jsonl, either also packed as .gz. The model is a ReMamba, or any transformers causal model.
    `remamba eval score` scores again without a model, `remamba eval compare` sets two runs side
    by side.

    Example: remamba eval leval --data LEval/Closed-ended-tasks --limit 10 --output runs/tiny
    """

    task: Annotated[Positional[Literal["longbench-e", "leval"]], arg(metavar="TASK")]
    """longbench-e or leval."""
    data: Annotated[Path, arg(metavar="DIR")]
    """The folder of the data files; the word hub downloads them."""
    datasets: Annotated[
        tuple[str, ...],
        arg(metavar="NAME ...", help_behavior_hint="(default: all whose files are there)"),
    ] = ()
    """Only these datasets."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Only the first N questions of each."""
    max_length: Annotated[int, arg(metavar="N")] = 6000
    """Tokens of a prompt and the room for its answer."""
    protocol: Literal["authors", "official"] = "authors"
    """Prompts and cuts: as the ReMamba authors, or as the benchmark's own scripts."""
    scoring: Literal["official", "authors"] = "official"
    """L-Eval: authors gives 0.25 to an empty choice, as the ReMamba authors' evaluator does."""
    shorten: Annotated[str, arg(metavar="{none,last,middle,bm25}")] = "none"
    """Shorten each document first: keep its last tokens (last), cut its middle out (middle), or
    keep the paragraphs that BM25 ranks highest for the question (bm25)."""
    shorten_tokens: Annotated[int, arg(metavar="N")] = 2000
    """How many tokens of a document --shorten leaves."""


def run(args: Args) -> int:
    """Predicts, scores, reports; prints the scores."""
    from remamba.evals.hub import HUB, fetch
    from remamba.evals.items import DataFolder
    from remamba.evals.prompting import Prompting, check_shorten
    from remamba.evals.tasks import find_task

    args.check()
    check_shorten(args.shorten, args.shorten_tokens)
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit} must be at least 1")
    task = find_task(args.task)
    is_remote = str(args.data) == HUB and not args.data.is_dir()
    data = DataFolder(fetch(task.name) if is_remote else args.data)
    items = read_items(args, task, data)
    settings = {
        "datasets": list(items),
        "limit": args.limit,
        "max_length": args.max_length,
        "protocol": args.protocol,
        "shorten": args.shorten,
        "shorten_tokens": args.shorten_tokens if args.shorten != "none" else None,
        "seed": args.seed,
        "data": data.hashes,
    }

    def prepare(reader: AnsweringModel) -> tuple[Prompting, dict[str, list[Item]], dict[str, Any]]:
        prompting = Prompting(
            reader.tokenizer,
            task.name,
            args.protocol,
            args.max_length,
            args.shorten,
            args.shorten_tokens,
        )
        return prompting, items, settings

    return carry_out(args, task, prepare, args.scoring)


def read_items(args: Args, task: Task, data: DataFolder) -> dict[str, list[Item]]:
    """The questions of each dataset that is asked for and there.

    Raises:
        InputError: a dataset is unknown, its file is missing, or a row cannot be used.
    """
    if unknown := [name for name in args.datasets if name not in task.datasets]:
        raise InputError(
            f"--datasets {unknown[0]} is none of {task.name}'s: {', '.join(task.datasets)}"
        )
    found: dict[str, list[Item]] = {}
    for name in task.datasets:
        if args.datasets and name not in args.datasets:
            continue
        assert task.read_items is not None, "needles have a command of their own"
        items = task.read_items(data, name, args.protocol)
        if items is not None:
            found[name] = items[: args.limit]
        elif args.datasets:
            raise InputError(f"--data {args.data} lacks the file of {name}; see --help for names")
    if not found:
        raise InputError(f"--data {args.data} holds no file of {task.name}; see --help for names")
    return found
