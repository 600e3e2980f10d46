"""What a reader is asked and what it answers, in text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from remamba.compression_config import CompressionConfig
from remamba.engine.kept_words import KeptWord
from remamba.engine.request import Scored, fill_template
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.methods.base import Method

if TYPE_CHECKING:
    from remamba.engine.document import Document

AskedMethod = str | Method | CompressionConfig | None
"""How a document is read: None is the model's own way, or the one the document was read with; a
name ("plain", "remamba" with the model's own settings, "last", ...; see `remamba.methods.base`), a
Method, or settings of `remamba`."""


@dataclass(frozen=True, eq=False)
class Ask:
    """A question about a document, or a whole prompt in one part.

    Texts are read exactly as they are given, document and question each by itself. What is wrong
    with an ask is told when it is answered, so that one bad ask need not end many good ones.
    """

    document: str | Path | Document | None = None
    """The text itself, a text file (UTF-8), or what `Reader.read` returned."""
    question: str | None = None
    prompt: str | None = None
    """In place of a document and a question."""
    method: AskedMethod = None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    """How the answer is drawn, and when it ends."""
    prefix: str = ""
    """What stands before the document, such as an instruction: where a method chooses parts of the
    document, it is read before each of them."""
    template: str | None = None
    """How the question is written behind the document, {question} in its place; None: the
    model's own."""

    def check(self) -> None:
        """Raise InputError for what can be seen to be wrong without a model."""
        if (self.document is None) == (self.prompt is None):
            given = "none" if self.prompt is None else "both"
            raise InputError(f"an ask takes a document or a prompt (given: {given})")
        if (self.question is None) != (self.document is None):
            raise InputError("a question goes with a document, and a document with a question")
        if self.prefix and not isinstance(self.document, str | Path):
            raise InputError("a prefix stands before a document that is given as text or a file")
        if self.prompt is not None and self.template is not None:
            raise InputError("a template is for a question, and a prompt is read as it is given")
        for name in ("document", "question", "prompt", "template", "prefix"):
            text = getattr(self, name)
            if name != "document" and not isinstance(text, str | None):
                raise InputError(f"the {name} {text!r} is no text; give a str")
            if name == "prefix":
                continue
            if isinstance(text, str) and not (text if name == "prompt" else text.strip()):
                raise InputError(f"the {name} is empty; it needs at least one word")
        if self.template is not None:
            fill_template(self.template, "")


@dataclass(frozen=True)
class TextRange:
    """A part of a document."""

    text: str
    start: int
    """Its first character in the document."""
    stop: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model answered, what it kept of the document for it, and what that took.

    An ask that could not be answered has an `error`, no text, and the finish_reason "error"; there
    are such answers only where they were asked for.
    """

    text: str
    """As the model wrote it, up to a stop string or the end-of-text token."""
    kept: tuple[KeptWord, ...] | None
    """The document's words (the prompt's) that were kept, in its order, with their places and
    scores; None: plain Mamba keeps none. Empty where the text is not known."""
    seconds: dict[str, float]
    """`prefill` and `decode`; with two stages also `stage1` and `stage2`, which make up prefill.
    What was asked together shares them (see `Completion.seconds`)."""
    method: str
    """The name of the method that read."""
    finish_reason: str
    """stop: a stop string or token | eos: an end-of-text token | length: max_new_tokens |
    cancelled: a stream was left off | error."""
    prompt_tokens: int
    """Of the document and the question, or of the prompt."""
    token_ids: list[int]
    """All tokens drawn, an end-of-text token and those of a stop string among them."""
    kept_tokens: list[tuple[int, float]] | None
    """Position and score of each kept token, from which `kept` is made."""
    scored: Scored | None = None
    """The scores of all positions that they were chosen from; None: plain Mamba."""
    passages: tuple[TextRange, ...] | None = None
    """The parts of the document that the answer was read from, where the method chose some (`bm25`,
    `chunks`); None: the method does not choose among parts."""
    error: Exception | None = None
    """Why there is no answer; a RuntimeError is one of the machine, such as out of memory."""

    @classmethod
    def failed(cls, error: Exception) -> Answer:
        """In place of an answer that there is not."""
        return cls("", None, {}, "", "error", 0, [], None, error=error)

    @property
    def new_tokens(self) -> int:
        """How many tokens were drawn."""
        return len(self.token_ids)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Answer(error={shortened(str(self.error))!r})"
        kept = "" if self.kept is None else f", {len(self.kept)} words kept"
        if self.passages is not None:
            kept += f", from {', '.join(f'{p.start}-{p.stop}' for p in self.passages[:3])}"
        seconds = self.seconds.get("prefill", 0.0) + self.seconds.get("decode", 0.0)
        return f"Answer({shortened(self.text)!r}, by {self.method}{kept}, in {seconds:.2f} s)"


def shortened(text: str, limit: int = 40) -> str:
    """The beginning of a text, on one line of at most `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 4] + " ..."
