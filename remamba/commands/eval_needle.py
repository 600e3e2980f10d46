"""`remamba eval needle`: facts hidden in long prose are asked for; a heat map of what is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from remamba.commands.evaluation import RunOptions, carry_out
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.evals.items import Item
    from remamba.evals.needles import NeedleAsking
    from remamba.evals.readers import AnsweringModel


@dataclass(frozen=True, kw_only=True)
class Args(RunOptions):
    """Hide facts in real prose at chosen depths and lengths, and ask for one of them.

    Scored is whether the answer is right and, where tokens are kept, whether the fact's were. The
    report has a heat map.

    Example: remamba eval needle --data books/ --lengths 1000 2000 4000 --output runs/needle
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """A folder of prose: .txt and .md files, or .jsonl rows with a `text`, also as .gz or .xz."""
    lengths: Annotated[tuple[int, ...], arg(metavar="N ...")] = (1000, 2000, 4000, 8000)
    """Lengths of the documents, in tokens."""
    depths: Annotated[tuple[float, ...], arg(metavar="SHARE ...")] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the fact stands, from 0 (the start) to 1 (the end)."""
    per_cell: Annotated[int, arg(metavar="N")] = 5
    """Questions for each length and depth."""
    needles: Annotated[int, arg(metavar="N")] = 1
    """Facts in a document; one is asked for, the others are of its kind and of other people."""


def run(args: Args) -> int:
    """Makes the questions, asks, scores, reports; prints the heat map as a table."""
    from remamba.evals import needles
    from remamba.evals.items import DataFolder
    from remamba.evals.tasks import find_task

    args.check()
    _check(args)
    data = DataFolder(args.data)
    texts = needles.read_prose(data)

    def prepare(
        reader: AnsweringModel,
    ) -> tuple[NeedleAsking, dict[str, list[Item]], dict[str, Any]]:
        template = getattr(reader.model.config, "question_template", None)
        template = template or needles.QUESTION_TEMPLATE
        items = needles.make_items(
            texts,
            reader.tokenizer,
            lengths=args.lengths,
            depths=args.depths,
            per_cell=args.per_cell,
            needles=args.needles,
            template=template,
            seed=args.seed,
        )
        facts = "one fact" if args.needles == 1 else f"{args.needles} facts"
        words = (
            f"{facts} in prose, the one asked for at depths "
            f"{', '.join(f'{depth:g}' for depth in args.depths)}; question template {template!r}"
        )
        chosen = {
            "lengths": list(args.lengths),
            "depths": list(args.depths),
            "questions a cell": args.per_cell,
            "facts in a document": args.needles,
            "question template": template,
        }
        settings = {"needles": chosen, "seed": args.seed, "data": data.hashes}
        return needles.NeedleAsking(args.lengths, words), {needles.DATASET: items}, settings

    return carry_out(args, find_task("needle"), prepare)


def _check(args: Args) -> None:
    for name, least, most in (("per_cell", 1, 10_000), ("needles", 1, 100)):
        if not least <= getattr(args, name) <= most:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is outside {least} to {most}"
            )
    if outside := [depth for depth in args.depths if not 0 <= depth <= 1]:
        raise InputError(f"--depths {outside[0]:g} is outside 0 (the start) to 1 (the end)")
    for name in ("lengths", "depths"):
        values = getattr(args, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name} needs at least one value, each only once")
