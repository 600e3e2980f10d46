"""The engine: prefill, decode and sample for many requests at once (continuous batching).

A request waits, is prefilled together with similar ones, and gets a slot: a row of states. Every
step draws one token for all slots. A finished request leaves its slot to the next that waits.

    engine = Engine(model, tokenizer, slots=8, step_tokens=512)
    job = engine.submit(Request(...))               # a Job; submit(request, count=3): with 2 forks
    reading = engine.read([ids], method)            # a ReadJob: a document on its way to a memory
    while not engine.is_idle:
        for job in engine.step():                   # those that have moved
            job.take_text(), job.is_finished, job.error, job.completion
    engine.cancel(job, reading)                     # at any moment; the slot is free at once

With `step_tokens` a step reads at most about so many tokens of prompts and documents before it
draws, so that a long document never stops those that are answered. Every second such step goes to
what came first, every other to what is nearest to its end. Each piece of a prompt is as long as it
would be without company, so that neighbours change no answer.

`step` raises nothing that is one job's: the job gets it as its `error`, the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from remamba.bare_model import BaseReMamba
from remamba.engine.entering import AnyJob, Entering, Prefilled, ReadJob, forget, span_scores
from remamba.engine.entrance import Entrance
from remamba.engine.request import Completion, Job, Request, fill_template
from remamba.engine.sampling import Sampler, SamplingOptions
from remamba.engine.slots import Drawn, GrowingRows, Known, Rows, Slots, StaticRows
from remamba.engine.text_iterator import TextIterator
from remamba.errors import InputError
from remamba.execution.decode import runs_in_place
from remamba.execution.passes import not_finite
from remamba.methods.plain import Plain
from remamba.model.layer_rules import Scaling
from remamba.model.states import StateCache
from remamba.text import GrowingText, encode, end_tokens

__all__ = ["Completion", "Engine", "Request", "SamplingOptions", "TextIterator", "fill_template"]


class Engine:
    """Answers requests on one model, up to `slots` of them at a time.

    Args:
        model: put into evaluation mode.
        tokenizer: a fast one; None when requests bring token ids and want nothing else back.
        slots: how many states are held at once.
        piece_length: tokens that a prefill reads at once; bounds its memory, changes no result.
        static: hold the states of all slots at one place, so that a step is a CUDA graph and the
            next one begins before the last one's tokens are known. None: on a GPU, and on a CPU
            for the few slots that a step in C takes.
        step_tokens: about how many tokens of prompts and documents a step reads; bounds how long
            others wait for their next token, changes no result. None: whole prompts.

    Not for several threads at once: `EngineLoop` gives it one (`prepare` alone may run anywhere).
    """

    def __init__(
        self,
        model: BaseReMamba,
        tokenizer: Any = None,
        slots: int = 8,
        *,
        piece_length: int | None = None,
        static: bool | None = None,
        step_tokens: int | None = None,
    ):
        for name, value in (("slots", slots), ("step_tokens", step_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eos = end_tokens(model, tokenizer)
        if static is None:
            static = runs_in_place(model, slots)
        self._growing: Rows = GrowingRows(model)
        self._plain: Rows = StaticRows(model, slots) if static else self._growing
        """Where answers are written by plain Mamba; rows in place know no layer rule."""
        self._slots: Slots[Job] = Slots(slots, self._plain)
        self._rule: Scaling | None = None
        """The layer rule by which all answers in the slots are written."""
        self._ahead: _Asked | None = None
        self._entrance = Entrance(model, piece_length, step_tokens)
        self._ready: deque[_Ready] = deque()
        self._is_stepping = False
        self._moved: list[AnyJob] = []
        self._last_document: tuple[str, list[int]] = ("", [])

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return self._entrance.is_empty and not (self._ready or self._slots.owners)

    @property
    def running(self) -> int:
        """How many answers are being written."""
        return len(self._slots.owners)

    @property
    def waiting(self) -> int:
        """How many jobs have no slot yet, those that are being prefilled or read among them."""
        return len(self._entrance) + len(self._ready)

    def run(
        self, requests: Sequence[Request], on_text: Callable[[int, str], None] | None = None
    ) -> list[Completion]:
        """A completion for each request, in their order.

        Args:
            on_text: called with a request's number and each piece of its text as it becomes final.

        Raises:
            InputError: a request cannot be answered (an empty prompt, logits that are not finite).
            RuntimeError: the machine's memory is too small for one.
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
                assert not self.is_idle, "unfinished jobs are neither waiting nor in a slot"
                moved: list[Any] = self.step()
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

    def submit(self, request: Request, count: int = 1) -> Job:
        """Put a request in the queue; `step` moves it on.

        Args:
            count: how many answers are drawn; all but the first are the job's `forks`. The answer
                number i is that of a request with the seed i higher; the prompt is read once.

        Raises:
            InputError: it cannot be read (empty, text without a tokenizer, unknown tokens).
        """
        return self.add(self.prepare(request, count))

    def prepare(self, request: Request, count: int = 1) -> Job:
        """The job of a request, for `add`; any thread may make it. See `submit`."""
        if count < 1:
            raise InputError(f"count = {count} answers: give a number from 1 on")
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
        if request.prompt_logprobs is not None and not isinstance(method, Plain):
            raise InputError(
                f"prompt_logprobs with the method {method.name}: only plain reads a prompt as it "
                "stands; give method='plain'"
            )
        if count > 1 and method.draws:
            raise InputError(
                f"count = {count} answers by the method {method.name}, which reads anew for each "
                "seed; submit a request for each"
            )
        if request.options.stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the engine has none")
        rule = memory.cache.rule if memory is not None else method.goes_on_by(self.model)
        jobs = []
        for number in range(count):
            options = replace(request.options, seed=request.options.seed + number)
            own = replace(request, options=options) if number else request
            growing = GrowingText(self.tokenizer, options.stop) if self.tokenizer else None
            sampler = Sampler(options, self.eos)
            jobs.append(Job(own, context, ids, method, sampler, growing, rule, memory))
        jobs[0].forks = jobs[1:]
        return jobs[0]

    def add(self, job: Job) -> Job:
        """Put a job that `prepare` made in the queue."""
        self._entrance.add(job)
        return job

    def read(self, job: ReadJob) -> ReadJob:
        """Put the reading of a document in the queue; `step` moves it on."""
        self._entrance.add(job)
        return job

    def cancel(self, *jobs: AnyJob) -> None:
        """End jobs with the text they have so far; finished jobs stay as they are."""
        if any(job.unfinished for job in jobs):
            for job in jobs:
                job.cancel()
            self._sweep()

    def _sweep(self) -> None:
        """Let go of jobs that have ended; amid a step this waits for the step's end."""
        if self._is_stepping:
            return
        self._entrance.sweep()
        if self._ready:
            self._ready = deque(one for one in self._ready if not one.job.is_finished)
        finished = [job for job in self._slots.owners if job.is_finished]
        if finished:
            try:
                self._slots.drop(finished)
            except Exception as error:  # as where there is no memory for the rows that stay
                self._fail_slots(error)

    @torch.inference_mode()
    def step(self) -> list[AnyJob]:
        """Read of what is to enter, then draw one token for every slot.

        Returns:
            The jobs that have moved: those with new text, and those that are finished.
        """
        self._is_stepping = True
        try:
            while self._ready and self._slots.free and self._joins(self._ready[0].job):
                cache, job = self._ready.popleft()
                self._seat(cache, [(0, job)])
            for one in self._entrance.read_some(self._count_free):
                self._admit(one)
            if self._slots.owners:
                self._advance()
        finally:
            self._is_stepping = False
            self._sweep()
        moved, self._moved = [*self._entrance.ended, *self._moved], []
        self._entrance.ended = []
        return list(dict.fromkeys(moved))

    def _joins(self, job: Job) -> bool:
        """Whether a job's answer can be written beside those in the slots: by the same rule.

        One of another rule waits until the slots are empty.
        """
        if not self._slots.owners:
            self._rule = job.rule
            self._slots.rows = self._plain if job.rule is None else self._growing
        return job.rule == self._rule

    def _count_free(self) -> int:
        return self._slots.free - len(self._ready)

    def _admit(self, one: Entering[Prefilled]) -> None:
        """Draw the first token of each job of a prefill, and of its forks; they get slots."""
        group, found, passage = one.jobs, one.found, one.found.passage
        try:
            pairs = [(row, job) for row, lead in enumerate(group) for job in lead.unfinished]
            index = torch.tensor([row for row, _ in pairs], device=found.logits.device)
            drawn = Known(found.logits.index_select(0, index), [job.sampler for _, job in pairs])
            kept = None if passage.kept is None else passage.kept.rows()
            scores = None if passage.scores is None else span_scores(passage)
            chunks = None if passage.chosen is None else passage.chosen.tolist()
        except Exception as error:
            self._entrance.fail(group, error)
            return
        staying = []
        for (row, job), token, told in zip(pairs, drawn.tokens(), _each(drawn), strict=True):
            job.kept = None if kept is None else kept[row]
            job.scored = None if scores is None else scores[row]
            job.chunk = None if chunks is None else chunks[row]
            if found.prompt_logprobs is not None:
                job.prompt_logprobs = found.prompt_logprobs[row]
            job.seconds = one.clock.seconds(group[row].reading_seconds)
            self._take(job, token, told)
            if not job.is_finished:
                staying.append((row, job))
        cache = passage.cache
        assert cache is not None
        cache.kept = None
        # of a rule of its own, or behind one that waits for the slots to empty: it waits as well
        is_behind = bool(self._ready) and not self._joins(self._ready[0].job)
        free = self._slots.free if not is_behind and self._joins(group[0]) else 0
        seated, others = staying[:free], staying[free:]
        self._seat(cache, seated)
        # those without a slot wait with their states
        for row, job in others:
            with failing([job]):
                self._ready.append(_Ready(cache.select(torch.tensor([row])), job))

    def _seat(self, cache: StateCache, staying: list[tuple[int, Job]]) -> None:
        """Give slots to jobs, each with its row of a cache."""
        jobs = [job for _, job in staying]
        rows = [row for row, _ in staying]
        if not jobs:
            return
        with failing(jobs):
            if rows != list(range(cache.batch_size)):
                cache = cache.select(torch.tensor(rows))
            self._slots.put(cache, jobs, [job.token_ids[-1] for job in jobs])

    def _advance(self) -> None:
        """One more token for the slots in use."""
        try:
            asked, drawn, told = self._drawn()
        except BaseException as error:
            self._fail_slots(error)
            if isinstance(error, Exception):
                return
            raise
        for job, token, row in zip(asked, drawn, told, strict=True):
            if not job.is_finished:  # it may have ended while its next token was under way
                self._take(job, token, row)

    def _drawn(self) -> tuple[list[Job], list[int | None], list[list[float] | None]]:
        """The jobs of a step, their tokens, and what is told of these."""
        asked, self._ahead = self._ahead, None
        if asked is not None and all(job.is_finished for job in asked.jobs):
            asked.drawn.tokens()  # all have left since; what was under way must end first
            asked = None
        if asked is None:
            asked = self._ask()
        if self._slots.rows.runs_ahead and not self._ends_with(asked):
            self._ahead = self._ask()
        return asked.jobs, asked.drawn.tokens(), _each(asked.drawn)

    def _fail_slots(self, error: BaseException) -> None:
        """End what is in the slots: after a step that failed their states are of no use."""
        jobs, self._ahead = self._slots.owners, None
        self._slots.clear()
        forget(error)
        for job in jobs:
            job.fail(error) if isinstance(error, Exception) else job.cancel()
        self._moved += jobs

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

    def _take(self, job: Job, token: int | None, told: list[float] | None) -> None:
        self._moved.append(job)
        if token is None:
            place = f"the logits behind {len(job.token_ids)} new tokens"
            job.fail(not_finite(place, self.model.dtype))
            return
        try:
            job.take(token, self.eos, told)
        except Exception as error:  # as where its text cannot be made
            job.fail(error)

    def _ids(self, name: str, given: str | Sequence[int], *, begins: bool = True) -> list[int]:
        """The tokens of a part of a request."""
        if isinstance(given, str):
            if self.tokenizer is None:
                raise InputError(f"{name} is text and the engine has no tokenizer; give token ids")
            last, known = self._last_document  # any thread may put another one there
            if begins and given == last:
                return known  # asked again: a long document is encoded once
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


class _Ready(NamedTuple):
    """A job that has its first token and no slot yet, and its states."""

    cache: StateCache
    job: Job


class _Asked(NamedTuple):
    """A step that may still be running, and the jobs whose tokens it draws."""

    jobs: list[Job]
    drawn: Drawn


def _each(drawn: Drawn) -> list[list[float] | None]:
    """What is told of each row's token; None each where nothing is."""
    told = drawn.likelihoods()
    return [None] * len(drawn.tokens()) if told is None else [*told]


@contextmanager
def failing(jobs: Sequence[Job]) -> Iterator[None]:
    """An exception inside the block ends these jobs, and no others."""
    try:
        yield
    except Exception as error:
        forget(error)
        for job in jobs:
            job.fail(error)
