"""What the engine takes and gives: requests, completions, and the jobs between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from remamba.bare_model import Compression, MethodLike
from remamba.engine.likelihoods import TokenLogprob, check_likeliest, told
from remamba.engine.sampling import Sampler, SamplingOptions
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.memory import DocumentMemory
from remamba.model.layer_rules import Scaling
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
    client: str = ""
    """Who asks. Clients take turns, so that one who asks much does not stop the others."""
    prompt_logprobs: int | None = None
    """Also tell the log-probability of each token of the prompt, and so many of the likeliest ones
    with it (OpenAI's `echo` needs them). For prompts in one part, read by the method `plain`."""

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
        check_likeliest("prompt_logprobs", self.prompt_logprobs)
        if self.prompt_logprobs is not None and self.prompt is None:
            raise InputError("prompt_logprobs are told of a prompt in one part; give prompt=")
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
    logprobs: list[TokenLogprob] | None = None
    """Of each of the tokens drawn; None where they were not asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Of each token of the prompt, None for the first, which nothing stands before."""


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
    error: Exception | None = None
    """Why it could not be answered: an InputError, or one of the machine, as out of memory."""
    reading_seconds: float = 0.0
    """Time spent on reading the document for this job and others after it."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    tokens_read: int = 0
    """How many of `length` its prefill has read so far; of two readings, the first is counted."""
    forks: list[Job] = field(default_factory=list)
    """Jobs that go on from the states that its prefill leaves, with random numbers of their own."""
    order: tuple[int, int] = (0, 0)
    """Its place among those that wait: the turn of its client, and its number."""
    is_apart: bool = False
    """Something that was read for it and for others has failed: it is now read by itself."""
    _news: str = ""
    _decoding_since: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def unfinished(self) -> list[Job]:
        """Itself and its forks, as far as they are not finished."""
        return [job for job in (self, *self.forks) if not job.is_finished]

    @property
    def client(self) -> str:
        """Who asks."""
        return self.request.client

    @property
    def length(self) -> int:
        """How many tokens its prefill reads."""
        return len(self.ids) + (len(self.context) if self.memory is None else 0)

    def fail(self, error: Exception) -> None:
        """End it without an answer; its forks go on."""
        if not self.is_finished:
            self.error = error

    def cancel(self) -> None:
        """End it with the text that it has so far; its forks go on."""
        if not self.is_finished:
            self.finish_reason = "cancelled"

    @property
    def completion(self) -> Completion:
        """The result of a finished job.

        Raises:
            InputError: the request could not be answered.
        """
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None, "the job is not finished"
        read = len(self.context)
        if self.request.memory is not None:
            read = int(self.request.memory.lengths.sum())
        return Completion(
            self.growing.text if self.growing else "",
            self.token_ids,
            self.finish_reason,
            self.kept,
            self.scored,
            self.chunk,
            read + len(self.ids),
            self.seconds,
            None if self.request.options.logprobs is None else self.logprobs,
            self.prompt_logprobs,
        )

    def take_text(self) -> str:
        """The text that has become final since the last call."""
        text, self._news = self._news, ""
        return text

    def take(
        self, token_id: int, eos: frozenset[int], likelihoods: Sequence[float] | None = None
    ) -> None:
        """One more token: the text grows, or the job is finished.

        Args:
            likelihoods: the token's row of `likelihoods`, where it was asked for.
        """
        options = self.request.options
        if likelihoods is not None and options.logprobs is not None:
            self.logprobs.append(told(likelihoods, token_id, options.logprobs))
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
