"""`remamba data build openorca-longalpaca`: the paper's training mixture as Parquet shards."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

Count = Annotated[int, arg(metavar="N")]
Files = Annotated[
    tuple[str, ...], arg(metavar="FILE [FILE ...]", help_behavior_hint="(default: from the hub)")
]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Build the paper's training data: 300,000 rows of OpenOrca and about 209,000 long ones.

    The long set is every row of LongAlpaca and OpenOrca with more than 700 tokens of prompt. Rows
    of more than 6,000 tokens are cut right behind the first 1,000, and left out if that is not
    enough. The output is a folder for `remamba train --data`; --resume goes on with a build that
    was cut off.

    Example: remamba data build openorca-longalpaca --output data/mixture
    """

    output: Annotated[Path, arg(metavar="DIR")]
    """Folder of the shards, manifest.json and report.md."""
    openorca: Files = ()
    """OpenOrca, in the order of its rows: Parquet or JSON lines with question and response."""
    longalpaca: Files = ()
    """LongAlpaca: a JSON array, JSON lines or Parquet with instruction and output."""
    tokenizer: Annotated[str, arg(metavar="NAME|DIR")] = "EleutherAI/gpt-neox-20b"
    """The tokenizer that counts: that of the model to be trained."""
    max_length: Count = 6000
    """Tokens of a prompt with its response and the end-of-text."""
    keep_first: Count = 1000
    """A longer prompt is cut right behind its first so many tokens."""
    long_prompt: Count = 700
    """A prompt of more tokens belongs to the long set."""
    normal_rows: Count = 300_000
    """Rows of the normal set ..."""
    normal_from: Count = 500_000
    """... drawn from OpenOrca's first so many."""
    seed: Count = 42
    """Of the draw and of the order."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used and count them, in place of stopping at the first."""
    resume: bool = False
    """Continue a build that was cut off."""
    overwrite: bool = False
    """Replace the build in --output."""
    json: bool = False
    """Print the manifest as one JSON object."""


def run(args: Args) -> int:
    """Builds; prints the report."""
    from lab.mixture.build import Mixture, hub_files, report
    from lab.mixture.mixture import SOURCES, Recipe
    from remamba.errors import InputError
    from remamba.text import load_tokenizer
    from remamba.train.encode import Encoder

    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite contradict each other; give one of them")
    names = ("max_length", "keep_first", "long_prompt", "normal_rows", "normal_from", "seed")
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    for source in SOURCES:
        for path in getattr(args, source.name):
            if not Path(path).is_file():
                raise InputError(f"--{source.name} {path} is no file; check the path")
    tokenizer = load_tokenizer(args.tokenizer, 1 << 32)
    mixture = Mixture(
        args.output,
        {s.name: list(getattr(args, s.name)) or hub_files(s) for s in SOURCES},
        Encoder(tokenizer, 1 << 32),
        args.tokenizer,
        recipe,
        skip_bad_rows=args.skip_bad_rows,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    manifest = mixture.build()
    print(json_module.dumps(manifest) if args.json else report(manifest).rstrip())
    return 0
