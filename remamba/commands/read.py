"""`remamba read`: a document is read once and kept as a memory for many questions."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from remamba.commands.model_options import ModelOptions


@dataclass(frozen=True)
class Args:
    """Read a document once into a memory file; `remamba ask --memory FILE` answers from it.

    The file holds the model's states after the document and the last-layer states of the span to
    compress. It belongs to the model that wrote it. It needs settings with which the second stage
    does not read the document again: --length 1, or --placement before_question.

    Example: remamba read report.txt --output report.memory
    """

    document: Annotated[Positional[str], arg(metavar="DOCUMENT")]
    """A text file (UTF-8); - is standard input."""
    output: Annotated[str, arg(metavar="FILE")]
    """The memory file to write."""
    overwrite: bool = False
    """Replace the file if it exists."""
    compact: bool = False
    """Keep the span's states in bfloat16: half the size of a float32 memory, no longer exact."""
    json: bool = False
    """Print one JSON object."""
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(args: Args) -> int:
    """Writes the memory; says on stderr what it took."""
    import torch

    from remamba.commands.reading import check_output, reading_bar, tell_untrained
    from remamba.commands.text_input import read_text
    from remamba.engine.reader import UNTRAINED_MEMORY

    check_output("--output", args.output, args.overwrite, args.document)
    text = read_text(args.document)
    reader = args.reading.load()
    method = args.reading.chosen(reader)
    if reader.is_untrained and args.reading.method is None:
        method = UNTRAINED_MEMORY
        tell_untrained(reader, method)
    with reading_bar() as bar:
        document = reader.read(text, method=method, progress=bar)
    document.save(args.output, torch.bfloat16 if args.compact else None)
    memory, seconds = document.memory, document.seconds
    assert memory is not None and seconds is not None, "a document was saved without a memory"
    size = Path(args.output).stat().st_size
    print(
        f"{len(document):,} tokens in {seconds:.2f} s ({len(document) / seconds:,.0f} tokens/s); "
        f"{args.output} has {size / 1e6:,.1f} MB",
        file=sys.stderr,
    )
    if args.json:
        found = {
            "output": args.output,
            "bytes": size,
            "model": reader.name,
            "fingerprint": memory.fingerprint,
            "tokens": len(document),
            "method": method.to_dict(),
            "seconds": {"load": reader.seconds, "read": seconds},
        }
        print(json_module.dumps(found))
    return 0
