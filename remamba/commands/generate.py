"""`remamba generate`: a prompt is continued, and the text appears as it is written."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from remamba.commands.model_options import ModelOptions
from remamba.commands.sampling_options import SamplingArgs
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import Reader
    from remamba.methods.base import Method


@dataclass(frozen=True)
class Args:
    """Continue a prompt; the text goes to standard output as it is written.

    The prompt is one text, read exactly as given. A model whose own settings compress a whole
    document before a question reads it as plain Mamba, and says so, unless settings are given.

    Example: remamba generate --prompt "Once upon a time" --temperature 0.8 --top-p 0.9
    """

    prompt: Annotated[str | None, arg(metavar="TEXT")] = None
    """The prompt itself."""
    prompt_file: Annotated[str | None, arg(metavar="FILE")] = None
    """A file with the prompt; - is standard input."""
    json: bool = False
    """Print one JSON object in place of the text."""
    sampling: OmitArgPrefixes[SamplingArgs] = field(
        default_factory=lambda: SamplingArgs(max_new_tokens=128)
    )
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(args: Args) -> int:
    """Writes the text to stdout, or one JSON object; what it took goes to stderr."""
    from remamba.commands.text_input import make_stdout_tolerant, read_text
    from remamba.engine.answer import Ask

    if (args.prompt is None) == (args.prompt_file is None):
        raise InputError("give either --prompt TEXT or --prompt-file FILE")
    if args.prompt_file is not None:
        prompt = read_text(args.prompt_file, "prompt")
    else:
        prompt = args.prompt or ""
    options = args.sampling.options()
    Ask(prompt=prompt).check()
    reader = args.reading.load(slots=1)
    method = _method(args.reading, reader)
    stream = reader.stream(Ask(prompt=prompt, options=options, method=method))
    make_stdout_tolerant()
    for text in stream:
        if not args.json:
            print(text, end="", flush=True)
    done = stream.answer
    assert done is not None
    if args.json:
        found = {
            "model": reader.name,
            "text": done.text,
            "token_ids": done.token_ids,
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.prompt_tokens,
            "method": method.to_dict(),
            "kept": done.kept_tokens,
            "seconds": {"load": reader.seconds, **done.seconds},
        }
        print(json_module.dumps(found))
    elif not done.text.endswith("\n"):
        print()
    new, decode = len(done.token_ids), done.seconds["decode"]
    rate = f" ({(new - 1) / decode:,.0f} tokens/s)" if new > 1 and decode > 0 else ""
    print(
        f"prompt of {done.prompt_tokens:,} tokens in {done.seconds['prefill']:.2f} s, "
        f"{new:,} new ones in {decode:.2f} s{rate}; ended by {done.finish_reason}",
        file=sys.stderr,
    )
    return 0


def _method(reading: ModelOptions, reader: Reader) -> Method:
    """The method in force; a prompt in one part has no document for a whole-document span."""
    from remamba.methods.plain import Plain

    if reader.is_untrained and reading.method is None and not reading.method_options():
        return Plain()
    method, is_asked = reading.chosen(reader), bool(reading.changes())
    placement = getattr(getattr(method, "compression", None), "placement", "")
    if placement == "before_question" and is_asked:
        raise InputError(
            "--placement before_question needs a question, and a prompt is one part; use "
            "`remamba ask`, or another --placement"
        )
    if not method.wants_question or is_asked or reading.method is not None:
        return method
    print(
        f"{reader.name} compresses whole documents before a question; this prompt has no question, "
        "so plain Mamba reads it (remamba ask --document answers questions)",
        file=sys.stderr,
    )
    return Plain()
