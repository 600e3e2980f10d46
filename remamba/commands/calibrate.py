"""`remamba calibrate`: the table that the methods filter and scale need, made from plain text."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from remamba.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from remamba import Reader
    from remamba.methods.rule_table import RuleTable


@dataclass(frozen=True, kw_only=True)
class Args:
    """Make the table by which a model reads under the method filter or scale.

    filter looks at the time steps in windows of the length that the model was trained at; scale
    looks for the factors with which windows of the wanted length have the least perplexity. Texts
    need no labels; take some that are not what the model is to be tested on.

    Example: remamba calibrate --model DIR --method filter --text book.txt --output filter.json
    """

    model: Annotated[str, arg(metavar="NAME|DIR")]
    """A model directory, a hub name, or the name of an embedded model."""
    method: Literal["filter", "scale"]
    """The method that is to read by the table."""
    text: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = ()
    """Text files (UTF-8)."""
    data: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = ()
    """Files of rows (JSON lines, also as .gz or .xz), each with a text in "document" or "text"."""
    output: Annotated[Path, arg(metavar="FILE.json")]
    """The table to write."""
    overwrite: bool = False
    """Replace the file if it exists."""
    window_tokens: Annotated[int, arg(metavar="N")] = 2000
    """Tokens of a window: for filter those of a text the model was trained on, for scale those of a
    text it is to read."""
    windows: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many windows at most (default: 100 for filter, 20 for scale)."""
    clip: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """filter: so many of a window's largest steps count as the least of them (default: 0.1)."""
    decay: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """filter: channels that keep more of a state over a window are filtered (default: 0.05)."""
    of: Annotated[
        Literal["steps", "A", "A_log"] | None,
        arg(metavar="steps|A|A_log", help_behavior_hint=""),
    ] = None
    """scale: what is scaled, the time steps, A, or A_log (default: steps)."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """scale: random steps, each of which reads all windows 3 times (default: 50)."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """scale: seed of the random steps (default: 0)."""
    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Its numbers."""
    json: bool = False
    """Print one JSON object."""


OWN: dict[str, dict[str, Any]] = {
    "filter": {"clip": 0.1, "decay": 0.05},
    "scale": {"of": "steps", "steps": 50, "seed": 0},
}
"""The options that one method alone has, and their defaults."""
WINDOWS = {"filter": 100, "scale": 20}


def run(args: Args) -> int:
    """Writes the table; says on stderr what it holds."""
    from remamba.commands.reading import check_output, reading_bar
    from remamba.engine.reader import Reader

    own = check(args)
    check_output("--output", str(args.output), args.overwrite, *map(str, args.text + args.data))
    texts = _texts(args)
    reader = Reader(args.model, device=args.device, dtype=args.dtype)
    windows = _windows(args, reader, texts)
    with reading_bar("windows") as bar:
        table = _table(args.method, reader, windows, {**own, "told": bar})
    table.made.update(_provenance(args, own, windows))
    table.save(args.output, f"--output {args.output}")
    print(f"{_in_words(table)}; {args.output} is the rule", file=sys.stderr)
    if args.json:
        told = {name: getattr(table, name) for name in ("method", "fingerprint", "digest", "made")}
        print(json_module.dumps({"output": str(args.output), **told}))
    return 0


def check(args: Args) -> dict[str, Any]:
    """The method's own options; InputError for what can be seen to be wrong before any work."""
    if not args.text and not args.data:
        raise InputError("there is no text to look at; give --text FILE or --data FILE")
    for name, least in (("window_tokens", 2), ("windows", 1), ("steps", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    for name in ("clip", "decay"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1:
            raise InputError(f"--{name} {value:g} must be a share from 0 to below 1")
    for method, options in OWN.items():
        for name in options:
            if method != args.method and getattr(args, name) is not None:
                raise InputError(
                    f"--{name} has no effect with --method {args.method}; leave it out"
                )
    given = {name: getattr(args, name) for name in OWN[args.method]}
    return {name: OWN[args.method][name] if x is None else x for name, x in given.items()}


def _texts(args: Args) -> Iterator[str]:
    from remamba.json_lines import JsonLines
    from remamba.text import read_text

    for path in args.text:
        yield read_text(path, "text")
    for path in args.data:
        for row in JsonLines(path):
            yield row.get_text("document" if "document" in row else "text", empty=False)


def _windows(args: Args, reader: Reader, texts: Iterator[str]) -> Tensor:
    from remamba.methods.calibration import windows_of
    from remamba.text import encode

    ids = (encode(reader.tokenizer, text).ids for text in texts)
    return windows_of(ids, args.window_tokens, args.windows or WINDOWS[args.method])


def _table(method: str, reader: Reader, windows: Tensor, options: dict[str, Any]) -> RuleTable:
    from remamba.methods.calibration import filter_table, scale_table

    make = filter_table if method == "filter" else scale_table
    return make(reader.model, windows, **options)


def _provenance(args: Args, own: dict[str, Any], windows: Tensor) -> dict[str, Any]:
    from remamba.provenance import commit, versions

    return {
        "model": args.model, "texts": [str(path) for path in args.text + args.data],
        "windows": len(windows), "window_tokens": args.window_tokens, **own,
        "versions": versions(), "commit": commit(),
    }  # fmt: skip


def _in_words(table: RuleTable) -> str:
    if table.method == "filter":
        layers = table.values["layers"]
        count, all_ = sum(len(x["channels"]) for x in layers), table.values["channels"]
        return (
            f"{count} of {all_ * len(layers)} channels forget slowly, and skip weak tokens of "
            f"documents from {table.values['from_tokens']:,} tokens on"
        )
    found = table.made["perplexity"]
    factors = ", ".join(f"{factor:.3g}" for factor in table.values["factors"])
    return f"perplexity {found['plain']:.4g} to {found['scaled']:.4g} with the factors {factors}"
