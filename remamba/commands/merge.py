"""`remamba merge`: an adapter and its base become a plain ReMamba directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the model that an adapter makes of its base, as a directory that needs no PEFT.

    ADAPTER is the output of `remamba train --parameters lora`, or the adapter that the ReMamba
    authors published, whose names are translated.
    """

    adapter: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Directory of the adapter."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to write."""
    base: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME|DIR", help_behavior_hint="(default: as the adapter says)"),
    ] = None
    """ReMamba that the adapter was trained on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the written weights; auto keeps the base's."""
    sum_tied: bool = False
    """Add the adapters of embeddings and head to one tied tensor, as the authors did."""
    overwrite: bool = False
    """Replace DST if it holds a ReMamba."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Merges; prints what was written."""
    import torch

    from remamba.pretrained import quiet_transformers
    from remamba.train.lora import merge

    with quiet_transformers():
        done = merge(
            args.adapter,
            args.dst,
            base=args.base,
            dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
            sum_tied=args.sum_tied,
            overwrite=args.overwrite,
        )
    if args.json:
        print(json.dumps(dataclasses.asdict(done)))
    else:
        print(
            f"{done.path}: {done.base} with {args.adapter} merged in, {done.parameters:,} "
            f"parameters, {done.dtype}{'' if done.tied else ', embeddings and head apart'}"
        )
    return 0
