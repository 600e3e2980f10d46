"""`remamba convert`: a published Mamba checkpoint becomes a ReMamba directory."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Args:
    """Turn a published Mamba, Mamba-2 or Falcon-Mamba checkpoint into a ReMamba directory.

    SRC is a directory or a hub name, in state-spaces' own layout or in transformers'. Weights are
    checked whole before anything is written; what ReMamba adds is initialised as asked.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Directory or hub name of the published checkpoint."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to write."""
    tokenizer: str | None = None
    """Directory or hub name of the tokenizer, where the checkpoint has none of its own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the written weights; auto keeps the checkpoint's."""
    compressor_init: Literal["released", "paper", "tied"] = "released"
    """Initial Query, Key and Value: as the authors' code, as the paper, or for training anew."""
    seed: int = 0
    """Seed of the initial values of --compressor-init tied."""
    start: float = 0.0
    """Where the span to compress starts, as a share of the prompt [s]."""
    length: float = 0.18
    """How much of the prompt the span covers [p]."""
    keep_ratio: float = 0.009
    """Share of the span's positions that are kept [rho]."""
    placement: Literal["replace", "append", "before_question"] = "replace"
    """Where the kept vectors stand."""
    adaption: Literal["selective", "exact", "multiplicative", "none"] = "selective"
    """How the scores enter stage 2."""
    overwrite: bool = False
    """Replace DST if it holds a ReMamba."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Converts; prints what was written."""
    import torch

    from remamba.checkpoints.convert import convert
    from remamba.configuration_remamba import CompressionConfig

    names = ("start", "length", "keep_ratio", "placement", "adaption")
    done = convert(
        args.src,
        args.dst,
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
        compressor_init=args.compressor_init,
        seed=args.seed,
        compression=CompressionConfig(**{name: getattr(args, name) for name in names}),
        tokenizer=args.tokenizer,
        overwrite=args.overwrite,
    )
    if args.json:
        print(json.dumps(dataclasses.asdict(done)))
    else:
        print(
            f"{done.path}: {done.backbone} with {done.parameters:,} parameters "
            f"({done.new_parameters:,} of them new), {done.dtype}, in {_files(done.shards)}"
        )
    if not done.tokenizer:
        print(
            f"remamba: {args.src} has no tokenizer; copy one into {done.path}, or convert again "
            "with --tokenizer",
            file=sys.stderr,
        )
    elif not done.chat_template:
        print(
            f"remamba: no chat template is written, since {args.tokenizer or args.src} has none; "
            "the model continues text, and training on rows of messages gives it a plain one",
            file=sys.stderr,
        )
    return 0


def _files(shards: int) -> str:
    return "1 file" if shards == 1 else f"{shards} files"
