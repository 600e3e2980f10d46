"""`remamba verify`: whether a checkpoint computes here what it should."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.checkpoints.verify import Check


@dataclass(frozen=True)
class Args:
    """Check that a model computes here what it should, in under a minute for 130 million weights.

    For any model: a batch equals its rows, pieces equal the whole, decoding equals reading, a
    memory that was saved equals one that was kept, the method equals the paper's equations, and a
    published model equals transformers' own class. For some published checkpoints also: logits
    and texts that they are known to give. Exit code 1 if a check fails.

    Examples: remamba verify state-spaces/mamba-130m-hf --dtype float32
    remamba verify models/remamba-130m --against models/mamba-130m-hf
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A model directory, a hub name, or the name of an embedded model."""
    answers_of: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Compare with the recorded answers of this published checkpoint; needed where the model's own
    name does not end in its name."""
    against: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A directory in transformers' layout that is to compute the same, such as the one that the
    model was converted from."""
    tokens: Annotated[int, arg(metavar="N")] = 128
    """Length of the random texts that are read."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1 ..."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Its numbers. Bounds are wider in 16 bits, and most published answers are of float16."""
    json: bool = False
    """Print one JSON object."""


LEAST = 48
"""Tokens that all checks can be made with."""


def run(args: Args) -> int:
    """Prints a line for each check as soon as it is made; 1 if one fails."""
    from remamba import Reader
    from remamba.checkpoints.verify import Verification
    from remamba.engine.loading import resolve_device, resolve_dtype

    if args.tokens < LEAST:
        raise InputError(f"--tokens {args.tokens} must be at least {LEAST}")
    device = resolve_device(args.device, "--device")
    reader = Reader(args.model, device=device, dtype=resolve_dtype(args.dtype, device, "--dtype"))
    asked = Verification(
        reader.model, reader.tokenizer, args.model, args.tokens, args.answers_of, args.against
    )
    found: list[Check] = []
    for check in asked.checks():
        found.append(check)
        if not args.json:
            print(as_text(check), flush=True)
    failed = [check.name for check in found if check.passed is False]
    made = sum(check.passed is not None for check in found)
    if args.json:
        checks = [check._asdict() for check in found]
        print(json_module.dumps({"model": args.model, "dtype": args.dtype, "checks": checks}))
    elif failed:
        print(f"{len(failed)} of {made} checks failed: {', '.join(failed)}")
    else:
        print(f"all {made} checks passed")
    return 1 if failed else 0


def as_text(check: Check) -> str:
    """One line: what came of it, how far apart, what was compared."""
    state = {True: "ok", False: "FAILED", None: "-"}[check.passed]
    apart = "" if check.difference is None else f"{check.difference:.1e} of {check.bound:.0e}"
    return f"{state:<7}{check.name:<13}{apart:<18}{check.words}"
