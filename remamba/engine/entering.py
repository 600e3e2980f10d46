"""What enters the engine: prefills of requests and readings of documents, piece by piece."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from remamba.bare_model import BaseReMamba
from remamba.engine.likelihoods import TokenLogprob, likelihoods, told
from remamba.engine.request import Job, Scored
from remamba.execution.passes import PassOptions, not_finite
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.chunks import Chunks, read_chunks
from remamba.methods.memory import DocumentMemory
from remamba.model.layers import vocabulary_logits
from remamba.model.rows import enter, pad_rows
from remamba.pretrained import known_fingerprint

T = TypeVar("T")

PREFILL_TOKENS = 8192
"""Most positions, padding included, in a prefill that several requests share."""
TOLD_AT_ONCE = 512
"""Positions of a prompt, all rows counted, whose likelihoods are computed at once."""


@dataclass(eq=False)
class ReadJob:
    """A document on its way to a memory."""

    rows: Sequence[Sequence[int]]
    """Its tokens, in one row; or a row for each chunk, where `is_cut`."""
    method: Method
    is_cut: bool = False
    """The rows are the chunks of the method `chunks`, each with the document's opening."""
    memory: DocumentMemory | None = None
    error: Exception | None = None
    is_cancelled: bool = False
    tokens_read: int = 0
    """How many of `length` have been read so far."""
    client: str = ""
    """Who asks, see `Request.client`."""
    order: tuple[int, int] = (0, 0)
    """Its place among those that wait: the turn of its client, and its number."""

    @property
    def length(self) -> int:
        """How many tokens are read."""
        return sum(map(len, self.rows))

    @property
    def is_finished(self) -> bool:
        return self.memory is not None or self.error is not None or self.is_cancelled

    @property
    def unfinished(self) -> list[ReadJob]:
        """Itself, unless it is finished."""
        return [] if self.is_finished else [self]

    def fail(self, error: Exception) -> None:
        """End it without a memory."""
        if not self.is_finished:
            self.error = error

    def cancel(self) -> None:
        """Leave the reading off."""
        self.is_cancelled = not self.is_finished or self.is_cancelled


AnyJob = Job | ReadJob


class Prefilled(NamedTuple):
    """What a prefill leaves for the jobs that it was made for, one row each."""

    logits: Tensor
    """(b, vocab) behind each prompt."""
    passage: Passage
    prompt_logprobs: list[list[TokenLogprob | None]] | None


class Entering(Generic[T]):
    """A prefill or a reading under way; `advance` takes it on by one piece."""

    def __init__(
        self, model: BaseReMamba, steps: Steps[T], jobs: Sequence[AnyJob], takes_slots: bool
    ):
        """`takes_slots`: each job has a row of its own; else all wait for one memory."""
        self.takes_slots = takes_slots
        self.jobs: list[Any] = list(jobs)
        self.order = min(job.order for job in jobs)
        self.total = sum(job.length for job in jobs) if takes_slots else jobs[0].length
        """About how many positions are read."""
        self.read = 0
        self.clock = StageClock(model)
        self.result: T | None = None
        self._steps = steps
        self._rows = len(jobs) if takes_slots else 1
        self._chance = Chance(jobs[0], model.device)

    @property
    def left(self) -> int:
        """About how many positions are still to be read."""
        return max(self.total - self.read, 0)

    @property
    def found(self) -> T:
        """The result, once it is there."""
        assert self.result is not None, "it is still under way"
        return self.result

    @property
    def is_left_off(self) -> bool:
        """Whether nobody waits for it any more."""
        return not any(job.unfinished for job in self.jobs)

    def advance(self) -> int:
        """Read one more piece; how many positions it had. `result` is there behind the last."""
        with self._chance, self.clock:
            try:
                count = next(self._steps)
            except StopIteration as end:
                self.result = end.value
                return 0
        self.read += count
        for job in self.jobs:
            job.tokens_read = min(self.read // self._rows, job.length)
        return count


def prefill(model: BaseReMamba, group: Sequence[Job], options: PassOptions) -> Steps[Prefilled]:
    """The states and logits behind the prompts of jobs that fit together (see `fits`)."""
    first = group[0]
    memory, wants_prompt = first.memory, first.request.prompt_logprobs is not None
    rows = [job.ids if memory is not None else job.context + job.ids for job in group]
    ids, mask = pad_rows(rows)
    questions = None
    if first.context and memory is None:
        questions = torch.tensor([len(job.ids) for job in group])
    if memory is not None:
        memory = memory.to(model.device)
    # ids on the host: they are looked at without waiting for the GPU
    batch = enter(
        ids, None if bool(mask.all()) else mask, question_lengths=questions,
        vocab_size=model.config.vocab_size, device=model.device,
    )  # fmt: skip
    options = options._replace(tail=0 if wants_prompt else 1)
    passage = yield from model.passing(batch, first.method, memory, model.new_cache(), options)
    prompts = None
    if wants_prompt:
        hidden = passage.hidden
        prompts = yield from _prompt_logprobs(model, hidden, group)
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        passage.hidden = hidden[torch.arange(len(rows), device=hidden.device), last].unsqueeze(1)
    return Prefilled(vocabulary_logits(model.lm_head, passage.hidden)[:, -1], passage, prompts)


def _prompt_logprobs(
    model: BaseReMamba, hidden: Tensor, group: Sequence[Job]
) -> Steps[list[list[TokenLogprob | None]]]:
    """The likelihood of every token of each prompt, by the states (b, l, d) behind each."""
    found: list[list[TokenLogprob | None]] = []
    for row, job in enumerate(group):
        count = job.request.prompt_logprobs
        assert count is not None
        tokens: list[TokenLogprob | None] = [None]
        for begin in range(0, len(job.ids) - 1, TOLD_AT_ONCE):
            given = job.ids[begin + 1 : begin + 1 + TOLD_AT_ONCE]
            logits = vocabulary_logits(model.lm_head, hidden[row, begin : begin + len(given)])
            rows = likelihoods(logits, torch.tensor(given, device=logits.device), count).tolist()
            tokens += [told(*one, count) for one in zip(rows, given, strict=True)]
            yield len(given)
        found.append(tokens)
    return found


def read(model: BaseReMamba, job: ReadJob, options: PassOptions) -> Steps[DocumentMemory]:
    """The memory of one document.

    Raises:
        InputError: the states are not finite, or no memory can stand for this method.
    """
    batch = enter(*pad_rows(job.rows), vocab_size=model.config.vocab_size, device=model.device)
    if job.is_cut:
        assert isinstance(job.method, Chunks), job.method
        memory = yield from read_chunks(model, batch, job.method, options)
    else:
        memory, _ = yield from job.method.read(model, batch, options)
    memory.fingerprint = known_fingerprint(model)
    states = (memory.hidden, *memory.cache.tensors().values())
    if not all(bool(torch.isfinite(state).all()) for state in states):
        raise not_finite("the document's states", model.dtype)
    return memory


def fits(job: Job, group: list[Job]) -> bool:
    """True when a job can be prefilled with the group: read alike, and of similar length."""
    first = group[0]
    if job.memory is not first.memory or bool(job.context) != bool(first.context):
        return False
    if job.method != first.method or not job.unfinished:
        return False
    # random numbers must not depend on who stands beside a job
    if first.method.draws or job.is_apart or first.is_apart:
        return False
    told_apart = (job.request.prompt_logprobs is None, first.request.prompt_logprobs is None)
    if told_apart[0] != told_apart[1]:
        return False
    lengths = [j.length for j in (*group, job)]
    longest = max(lengths)
    is_similar = longest <= 64 or 2 * min(lengths) >= longest
    return is_similar and longest * len(lengths) <= PREFILL_TOKENS


def same_document(first: Job, second: AnyJob) -> bool:
    """Whether a second job's document can be read with the first one's, once for both.

    Different clients share nothing.
    """
    if not isinstance(second, Job) or first.is_apart or second.is_apart:
        return False
    if first.client != second.client:
        return False
    if first.method != second.method or second.memory is not None or not second.unfinished:
        return False
    return first.context is second.context or first.context == second.context


def span_scores(passage: Passage) -> list[Scored]:
    """The scores of each row's span."""
    assert passage.scores is not None
    scores, span = passage.scores.float().cpu(), passage.reading.span
    start, length = span.start.tolist(), span.length.tolist()
    each = len(scores) // len(start)  # rows of a memory's document
    return [Scored(start[i // each], row[: length[i // each]]) for i, row in enumerate(scores)]


def forget(error: BaseException) -> None:
    """Let go of what a failed step held; after out of memory that is what others need."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Chance:
    """While it is entered, torch's random numbers are those of a job whose method draws some.

    They go on where they were when it was left, whatever others have drawn meanwhile.
    """

    def __init__(self, job: AnyJob, device: torch.device):
        self._seed = job.request.options.seed if isinstance(job, Job) else 0
        self._draws, self._device = job.method.draws, device
        self._state: list[Tensor] | None = None

    def __enter__(self) -> None:
        if not self._draws:
            return
        self._outside = self._get()
        if self._state is None:
            torch.manual_seed(self._seed)
        else:
            self._set(self._state)

    def __exit__(self, *_: object) -> None:
        if self._draws:
            self._state = self._get()
            self._set(self._outside)

    def _get(self) -> list[Tensor]:
        on_gpu = self._device.type == "cuda"
        return [
            torch.get_rng_state(),
            *([torch.cuda.get_rng_state(self._device)] if on_gpu else []),
        ]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self._device)


class StageClock:
    """Seconds spent while it is entered. Stage 1 ends when the compressor is asked for keys.

    On a GPU events measure it: waiting between the stages would slow the prefill down.
    """

    def __init__(self, model: BaseReMamba):
        self._device = model.device
        self._is_gpu = model.device.type == "cuda"
        self._keys = model.compressor.key_proj
        self._ranges: list[tuple[Any, Any]] = []
        self._stage1: tuple[int, Any] | None = None
        """In which range stage 1 ended, and when."""

    def __enter__(self) -> None:
        self._hook = self._keys.register_forward_pre_hook(self._mark)
        self._begun = self._now()

    def __exit__(self, *_: object) -> None:
        self._ranges.append((self._begun, self._now()))
        self._hook.remove()

    def _mark(self, *_: object) -> None:
        if self._stage1 is None:
            self._stage1 = (len(self._ranges), self._now())

    def _now(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, first: Any, last: Any) -> float:
        if not self._is_gpu:
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def seconds(self, reading: float = 0.0) -> dict[str, float]:
        """Seconds of the prefill, and of its two stages if it had two.

        Args:
            reading: seconds spent on reading the document before.
        """
        spent = [self._between(*one) for one in self._ranges]
        whole = sum(spent)
        found = {"prefill": reading + whole}
        if self._stage1 is not None:
            number, moment = self._stage1
            stage1 = sum(spent[:number]) + self._between(self._ranges[number][0], moment)
            found["stage1"] = reading + min(stage1, whole)
            found["stage2"] = whole - min(stage1, whole)
        return found
