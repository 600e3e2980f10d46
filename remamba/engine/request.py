"""What the engine takes and gives: requests, completions, and the jobs between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from remamba.engine.sampling import Sampler, SamplingOptions
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.memory import DocumentMemory
from remamba.model.layer_rules import Scaling
from remamba.modeling_base import Compression, MethodLike
from remamba.text import GrowingText


def fill_template(template: str, question: str) -> str:
    """The question as it is written behind a document.

    Raises:
        InputError: the template has no place for it.
    """
    if "{question}" not in template:
        raise InputError(f"the question template {template!r} lacks {{question}}")
    return template.replace("{question}", question)


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt in one part, or a document (or a memory of one) and a question behind it.

    Texts are read exactly as given, document and question each by itself; token ids are taken as
    they are. `fill_template` writes a question as a model expects it.

    Raises:
        InputError: parts are missing, or too many are given.
    """

    prompt: str | Sequence[int] | None = None
    document: str | Sequence[int] | None = None
    question: str | Sequence[int] | None = None
    memory: DocumentMemory | None = None
    """Of one document."""
    options: SamplingOptions = field(default_factory=SamplingOptions)
    compression: Compression = None
    """Settings of `remamba`; False: plain Mamba. None: as `method` says."""
    method: MethodLike | None = None
    """A way of reading; None: the model's own, or the one that the memory was read with."""

    def __post_init__(self) -> None:
        given = [n for n in ("prompt", "document", "memory") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InputError(
                f"a request takes one of prompt, document and memory (given: "
                f"{', '.join(given) or 'none'})"
            )
        if (self.question is None) != (self.prompt is not None):
            raise InputError("a question goes with a document or a memory, and with those only")
        if self.memory is not None and self.memory.documents != 1:
            raise InputError(
                f"the memory holds {self.memory.documents} documents; a request takes one: "
                "memory.select(torch.tensor([i]))"
            )
        for name in ("prompt", "document", "question"):
            text = getattr(self, name)
            if isinstance(text, str) and not (text if name == "prompt" else text.strip()):
                raise InputError(f"the {name} is empty; it needs at least one word")


class Scored(NamedTuple):
    """The scores that a selection was made by."""

    start: int
    """Position of the first, in what was read of the document (or of the prompt)."""
    scores: Tensor
    """(m,) float32, on the host: cosine of Key and Query (Eq. 3) of each position from there on."""

    @property
    def stop(self) -> int:
        """Behind the last position."""
        return self.start + len(self.scores)


@dataclass
class Completion:
    """What the engine wrote for a request."""

    text: str
    """Up to a stop string or the end-of-text token; "" when the engine has no tokenizer."""
    token_ids: list[int]
    """All tokens drawn, an end-of-text token and those of a stop among them."""
    finish_reason: str
    """stop: a stop string or token | eos: an end-of-text token | length: max_new_tokens |
    cancelled."""
    kept: list[tuple[int, float]] | None
    """Position (in the prompt, or the document) and score of each kept token; None: plain Mamba."""
    scored: Scored | None
    """Of all positions that kept ones were chosen from; None: plain Mamba."""
    chunk: int | None
    """Which of a memory's chunks answers, of the method `chunks`."""
    prompt_tokens: int
    seconds: dict[str, float]
    """`prefill` and `decode`; with two stages also `stage1` and `stage2`, which make up prefill.

    Requests prefilled together share these times; a document that the engine read for several
    requests counts in the first of them.
    """


@dataclass(eq=False)
class Job:
    """A request on its way through the engine."""

    request: Request
    context: list[int]
    """The document's tokens, where it was given as such; else empty."""
    ids: list[int]
    """The prompt's tokens, or the question's."""
    method: Method
    """How it is read."""
    sampler: Sampler
    growing: GrowingText | None
    rule: Scaling | None = None
    """The layer rule by which its answer is written; None: plain Mamba's."""
    memory: DocumentMemory | None = None
    token_ids: list[int] = field(default_factory=list)
    kept: list[tuple[int, float]] | None = None
    scored: Scored | None = None
    chunk: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    finish_reason: str | None = None
    error: InputError | None = None
    reading_seconds: float = 0.0
    """Time spent on reading the document for this job and others after it."""
    _news: str = ""
    _decoding_since: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def completion(self) -> Completion:
        """The result of a finished job.

        Raises:
            InputError: the request could not be answered.
        """
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None, "the job is not finished"
        read = len(self.context) if self.memory is None else int(self.memory.lengths.sum())
        return Completion(
            self.growing.text if self.growing else "",
            self.token_ids,
            self.finish_reason,
            self.kept,
            self.scored,
            self.chunk,
            read + len(self.ids),
            self.seconds,
        )

    def take_text(self) -> str:
        """The text that has become final since the last call."""
        text, self._news = self._news, ""
        return text

    def take(self, token_id: int, eos: frozenset[int]) -> None:
        """One more token: the text grows, or the job is finished."""
        options = self.request.options
        if not self.token_ids:
            self._decoding_since = time.perf_counter()
        self.token_ids.append(token_id)
        if token_id in eos and not options.ignore_eos:
            self._finish("eos")
            return
        if token_id in options.stop_token_ids:
            self._finish("stop")
            return
        if self.growing is not None:
            self._news += self.growing.push(token_id)
            if self.growing.stopped:
                self._finish("stop")
                return
        if len(self.token_ids) >= options.max_new_tokens:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        if self.growing is not None:
            self._news += self.growing.finish()
        self.finish_reason = reason
        self.seconds["decode"] = time.perf_counter() - self._decoding_since
