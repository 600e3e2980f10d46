"""The engine: prefill, decode and sample for many requests at once (continuous batching).

A request waits, is prefilled together with similar ones, and gets a slot: a row of states. Every
step draws one token for all slots. A finished request leaves its slot to the next that waits.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remamba.engine.request import Completion, Job, Request, Scored, fill_template
from remamba.engine.sampling import Sampler, SamplingOptions, choose
from remamba.engine.slots import Drawn, GrowingRows, Rows, Slots, StaticRows
from remamba.engine.stage_clock import StageClock
from remamba.errors import InputError
from remamba.execution.decode import runs_in_place
from remamba.execution.passes import not_finite
from remamba.model.layer_rules import Scaling
from remamba.model.rows import pad_rows
from remamba.modeling_base import ReMambaOutput
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.text import GrowingText, encode

__all__ = ["Completion", "Engine", "Request", "SamplingOptions", "TextIterator", "fill_template"]

PREFILL_TOKENS = 8192
"""Most positions, padding included, in a prefill that several requests share."""
LOOK_AHEAD = 64
"""How many waiting requests are looked at for ones that can be prefilled with the first."""


class TextIterator:
    """A request's text, piece by piece as it becomes final; then `completion`."""

    def __init__(self, engine: Engine, job: Job):
        self._engine = engine
        self._job = job

    def __iter__(self) -> TextIterator:
        return self

    def __next__(self) -> str:
        while not (text := self._job.take_text()):
            if self._job.error is not None:
                raise self._job.error
            if self._job.is_finished:
                raise StopIteration
            moved = self._engine.step()
            assert moved, "the job is neither waiting nor in a slot"
        return text

    @property
    def completion(self) -> Completion | None:
        """The whole result; None until it is there."""
        return self._job.completion if self._job.is_finished else None

    def close(self) -> None:
        """Leave off; the request gives its slot back."""
        self._engine.cancel(self._job)

    def __del__(self) -> None:
        self.close()


class Engine:
    """Answers requests on one model, up to `slots` of them at a time.

    Args:
        model: put into evaluation mode.
        tokenizer: a fast one; None when requests bring token ids and want nothing else back.
        slots: how many states are held at once.
        piece_length: tokens that a prefill reads at once; bounds its memory, changes no result.
        static: hold the states of all slots at one place, so that a step is a CUDA graph and the
            next one begins before the last one's tokens are known. None: on a GPU.

    Not for several threads at once: a server gives it one.
    """

    def __init__(
        self,
        model: ReMambaForCausalLM,
        tokenizer: Any = None,
        slots: int = 8,
        *,
        piece_length: int | None = None,
        static: bool | None = None,
    ):
        if slots < 1:
            raise InputError(f"slots = {slots} must be at least 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.piece_length = piece_length
        self.eos = end_tokens(model, tokenizer)
        if static is None:
            static = runs_in_place(model)
        self._growing: Rows = GrowingRows(model)
        self._plain: Rows = StaticRows(model, slots) if static else self._growing
        """Where answers are written by plain Mamba; rows in place know no layer rule."""
        self._slots: Slots[Job] = Slots(slots, self._plain)
        self._rule: Scaling | None = None
        """The layer rule by which all answers in the slots are written."""
        self._ahead: _Asked | None = None
        self._waiting: deque[Job] = deque()
        self._last_document: tuple[str, list[int]] = ("", [])

    def run(
        self, requests: Sequence[Request], on_text: Callable[[int, str], None] | None = None
    ) -> list[Completion]:
        """A completion for each request, in their order.

        Args:
            on_text: called with a request's number and each piece of its text as it becomes final.

        Raises:
            InputError: a request cannot be answered (an empty prompt, logits that are not finite).
        """
        jobs: list[Job] = []
        try:
            for request in requests:
                jobs.append(self.submit(request))
            number = {id(job): i for i, job in enumerate(jobs)}
            unfinished = deque(jobs)
            while unfinished:
                if unfinished[0].is_finished:
                    unfinished.popleft()
                    continue
                moved = self.step()
                assert moved, "unfinished jobs are neither waiting nor in a slot"
                for job in moved:
                    if job.error is not None and id(job) in number:
                        raise job.error
                    if on_text is not None and id(job) in number and (text := job.take_text()):
                        on_text(number[id(job)], text)
        finally:
            self.cancel(*jobs)
        return [job.completion for job in jobs]

    def stream(self, request: Request) -> TextIterator:
        """The text of one request, piece by piece; leaving off early cancels it.

        Raises:
            InputError: as `run`.
        """
        return TextIterator(self, self.submit(request))

    def submit(self, request: Request) -> Job:
        """Put a request in the queue; `step` moves it on.

        Raises:
            InputError: it cannot be read (empty, text without a tokenizer, unknown tokens).
        """
        context: list[int] = []
        if request.prompt is not None:
            ids = self._ids("the prompt", request.prompt)
        else:
            assert request.question is not None
            ids = self._ids("the question", request.question, begins=False)
        if request.document is not None:
            context = self._ids("the document", request.document)
        memory, asked = request.memory, (request.compression, request.method)
        if memory is not None and asked == (None, None):
            method = memory.method
        else:
            method = self.model.resolve_method(*asked)
        if request.options.stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the engine has none")
        growing = GrowingText(self.tokenizer, request.options.stop) if self.tokenizer else None
        rule = memory.cache.rule if memory is not None else method.goes_on_by(self.model)
        sampler = Sampler(request.options, self.eos)
        job = Job(request, context, ids, method, sampler, growing, rule, memory)
        self._waiting.append(job)
        return job

    def cancel(self, *jobs: Job) -> None:
        """End jobs with the text they have so far; finished jobs stay as they are."""
        unfinished = [job for job in jobs if not job.is_finished]
        for job in unfinished:
            if job in self._waiting:
                self._waiting.remove(job)
            job.finish_reason = "cancelled"
        if unfinished:
            self._slots.drop(unfinished)

    @torch.inference_mode()
    def step(self) -> list[Job]:
        """Prefill what finds a free slot, then draw one token for every slot.

        Returns:
            The jobs that have moved: those with new text, and those that are finished.
        """
        moved: list[Job] = []
        while self._waiting and self._slots.free and self._joins(self._waiting[0]):
            group = self._next_group()
            self._admit(group)
            moved += group
        if self._slots.owners:
            moved += self._advance()
        return list(dict.fromkeys(moved))

    def _joins(self, job: Job) -> bool:
        """Whether a job's answer can be written beside those in the slots: by the same rule.

        One of another rule waits until the slots are empty.
        """
        if not self._slots.owners:
            self._rule = job.rule
            self._slots.rows = self._plain if job.rule is None else self._growing
        return job.rule == self._rule

    def _next_group(self) -> list[Job]:
        """The first waiting job, and others behind it that can share its prefill."""
        group = [self._waiting.popleft()]
        near = list(itertools.islice(self._waiting, LOOK_AHEAD))
        self._share_document(group[0], near)
        if group[0].method.draws:
            return group  # its random numbers must not depend on who stands beside it
        for job in near:
            if len(group) < self._slots.free and _fits(job, group):
                group.append(job)
                self._waiting.remove(job)
        return group

    def _share_document(self, first: Job, near: list[Job]) -> None:
        """Read a document once, if several waiting jobs ask about it."""
        if not first.context or not first.method.serves_memory:
            return
        if not any(_same_document(first, job) for job in near):
            return
        start = time.perf_counter()
        ids = torch.tensor([first.context], device=self.model.device)
        try:
            memory = self.model.read(ids, method=first.method, piece_length=self.piece_length)
        except InputError:  # no memory can stand for it: each is read with its question
            return
        for job in (first, *self._waiting):
            if job is first or _same_document(first, job):
                job.memory = memory
        first.reading_seconds = time.perf_counter() - start

    def _admit(self, group: list[Job]) -> None:
        """Prefill a group, draw each one's first token, and give slots to those who need more."""
        clock = StageClock(self.model)
        try:
            with clock, _seeded(group[0], self.model.device):
                logits, out = self._prefill(group)
                tokens = choose(logits, [job.sampler for job in group])
        except InputError as error:
            if len(group) > 1:  # the error is of one of them: find which
                for job in group:
                    self._admit([job])
            else:
                group[0].error = error
            return
        nothing: list[Any] = [None] * len(group)
        kept = nothing if out.kept is None else out.kept.rows()
        scored = nothing if out.scores is None else _scored(out)
        chunks = nothing if out.chosen is None else out.chosen.tolist()
        cache = out.cache_params
        assert cache is not None
        cache.kept = None
        for job, token, *row in zip(group, tokens, kept, scored, chunks, strict=True):
            job.kept, job.scored, job.chunk = row
            job.seconds = clock.seconds(job.reading_seconds)
            self._take(job, token)
        staying = [row for row, job in enumerate(group) if not job.is_finished]
        if staying:
            if len(staying) < len(group):
                cache = cache.select(torch.tensor(staying))
            jobs = [group[row] for row in staying]
            self._slots.put(cache, jobs, [job.token_ids[-1] for job in jobs])

    def _prefill(self, group: list[Job]) -> tuple[Tensor, ReMambaOutput]:
        """The logits behind each prompt (b, vocab), and what the model returned with them."""
        first = group[0]
        is_apart = first.memory is not None
        rows = [job.ids if is_apart else job.context + job.ids for job in group]
        ids, mask = pad_rows(rows)
        question_lengths = None
        if first.context and not is_apart:
            question_lengths = torch.tensor([len(job.ids) for job in group])
        memory = first.memory
        if memory is not None:
            memory = memory.to(self.model.device)
        out = self.model(
            ids,  # on the host, where the model looks at them without waiting for the GPU
            attention_mask=None if bool(mask.all()) else mask,
            question_lengths=question_lengths,
            method=first.method,
            memory=memory,
            use_cache=True,
            logits_to_keep=1,
            piece_length=self.piece_length,
        )
        return out.logits[:, -1], out

    def _advance(self) -> list[Job]:
        """One more token for the slots in use."""
        asked, self._ahead = self._ahead, None
        if asked is not None and all(job.is_finished for job in asked.jobs):
            asked.drawn.tokens()  # all have left since; what was under way must end first
            asked = None
        if asked is None:
            asked = self._ask()
        if self._slots.rows.runs_ahead and not self._ends_with(asked):
            self._ahead = self._ask()
        moved = []
        for job, token in zip(asked.jobs, asked.drawn.tokens(), strict=True):
            if not job.is_finished:  # it may have ended while its next token was under way
                self._take(job, token)
                moved.append(job)
        if finished := [job for job in moved if job.is_finished]:
            self._slots.drop(finished)
        return moved

    def _ask(self) -> _Asked:
        jobs = list(self._slots.owners)
        return _Asked(jobs, self._slots.rows.draw([job.sampler for job in jobs]))

    def _ends_with(self, asked: _Asked) -> bool:
        """Whether no slot needs a token after these."""
        coming = set(map(id, asked.jobs))
        return all(
            len(job.token_ids) + (id(job) in coming) >= job.request.options.max_new_tokens
            for job in self._slots.owners
        )

    def _take(self, job: Job, token: int | None) -> None:
        if token is None:
            place = f"the logits behind {len(job.token_ids)} new tokens"
            job.error = not_finite(place, self.model.dtype)
        else:
            job.take(token, self.eos)

    def _ids(self, name: str, given: str | Sequence[int], *, begins: bool = True) -> list[int]:
        """The tokens of a part of a request."""
        if isinstance(given, str):
            if self.tokenizer is None:
                raise InputError(f"{name} is text and the engine has no tokenizer; give token ids")
            if begins and given == self._last_document[0]:
                return self._last_document[1]  # asked again: a long document is encoded once
            ids = encode(self.tokenizer, given, begins=begins).ids
            if begins:
                self._last_document = (given, ids)
        else:
            ids = list(map(int, given))
        if not ids:
            raise InputError(f"{name} is empty; it needs at least one token")
        vocab = self.model.config.vocab_size
        if not 0 <= min(ids) <= max(ids) < vocab:
            raise InputError(
                f"{name} has token {max(ids) if max(ids) >= vocab else min(ids)}, and the model "
                f"knows 0 to {vocab - 1}: the tokenizer is another model's"
            )
        return ids


class _Asked(NamedTuple):
    """A step that may still be running, and the jobs whose tokens it draws."""

    jobs: list[Job]
    drawn: Drawn


def end_tokens(model: ReMambaForCausalLM, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, as `generate` knows them; else the tokenizer's own."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def _fits(job: Job, group: list[Job]) -> bool:
    """True when a job can be prefilled with the group: read alike, and of similar length."""
    first = group[0]
    if job.memory is not first.memory or bool(job.context) != bool(first.context):
        return False
    if job.method != first.method:
        return False
    lengths = [len(j.ids) + (len(j.context) if j.memory is None else 0) for j in (*group, job)]
    longest = max(lengths)
    is_similar = longest <= 64 or 2 * min(lengths) >= longest
    return is_similar and longest * len(lengths) <= PREFILL_TOKENS


def _same_document(first: Job, second: Job) -> bool:
    alike = first.method == second.method and second.memory is None
    return alike and (first.context is second.context or first.context == second.context)


@contextmanager
def _seeded(job: Job, device: torch.device) -> Iterator[None]:
    """Seed torch with the request's seed for a while, if its method draws random numbers."""
    if not job.method.draws:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(job.request.options.seed)
        yield


def _scored(out: ReMambaOutput) -> list[Scored]:
    """The scores of each row's span."""
    assert out.scores is not None and out.span is not None
    scores = out.scores.float().cpu()
    start, length = out.span.start.tolist(), out.span.length.tolist()
    each = len(scores) // len(start)  # rows of a memory's document
    return [Scored(start[i // each], row[: length[i // each]]) for i, row in enumerate(scores)]
