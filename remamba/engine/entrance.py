"""The engine's entrance: jobs wait, and are prefilled or read piece by piece, between its steps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from remamba.bare_model import BaseReMamba
from remamba.engine.entering import (
    AnyJob,
    Entering,
    Prefilled,
    ReadJob,
    fits,
    forget,
    prefill,
    read,
    same_document,
)
from remamba.engine.request import Job
from remamba.execution.passes import PassOptions
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain
from remamba.methods.shorten import Shorten

MOST_CLIENTS = 4096
"""Clients whose turns are known before those without a turn to come are forgotten."""
LOOK_AHEAD = 64
"""How many waiting requests are looked at for ones that can be prefilled with the first."""


class Entrance:
    """Jobs on their way to a slot, or to a memory; clients take turns.

    Args:
        step_tokens: about how many tokens are read in a step. Every second step goes to what came
            first, every other to what is nearest to its end, so that neither waits for long. None:
            all that finds a slot, in the order in which it came.
    """

    def __init__(self, model: BaseReMamba, piece_length: int | None, step_tokens: int | None):
        self._model = model
        self._options = PassOptions(piece_length, most=step_tokens)
        self._step_tokens = step_tokens
        self._numbers = itertools.count()
        self._turn = 0
        """That of the job which was begun last."""
        self._turns: dict[str, int] = {}
        """The last turn that each client has taken; those who have none that is to come are left
        out now and then."""
        self._takes_first = False
        self.waiting: deque[AnyJob] = deque()
        self.entering: list[Entering[Any]] = []
        self.ended: list[AnyJob] = []
        """Jobs that have ended here, without an answer or with their memory; the engine takes them
        out."""

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.entering)

    def __len__(self) -> int:
        """How many jobs are here."""
        return len(self.waiting) + sum(len(one.jobs) for one in self.entering)

    def add(self, job: AnyJob) -> None:
        """Put a job behind those that wait; or beside those whose document is being read."""
        turn = max(self._turn, self._turns.get(job.client, -1) + 1)
        if len(self._turns) > MOST_CLIENTS:
            self._turns = {name: last for name, last in self._turns.items() if last >= self._turn}
        self._turns[job.client] = turn
        job.order = (turn, next(self._numbers))
        for one in self.entering:
            first = one.jobs[0]
            if not one.takes_slots and isinstance(first, Job) and same_document(first, job):
                one.jobs.append(job)
                return
        self.waiting.append(job)

    def sweep(self) -> None:
        """Let go of what nobody waits for any more."""
        if any(not job.unfinished for job in self.waiting):
            self.waiting = deque(job for job in self.waiting if job.unfinished)
        self.entering = [one for one in self.entering if not one.is_left_off]

    def read_some(self, free: Callable[[], int]) -> Iterator[Entering[Prefilled]]:
        """Read of what is here, as much as a step may; the prefills that are done by it.

        Args:
            free: how many slots are free now.
        """
        count = 0
        while (one := self._next(free)) is not None:
            try:
                count += one.advance()
            except Exception as error:
                self._leave(one)
                self.fail(one.jobs, error)
            except BaseException:
                self._leave(one)
                for job in one.jobs:
                    job.cancel()
                raise
            if one.result is not None:
                self._leave(one)
                if isinstance(one.result, DocumentMemory):
                    self._hand_out(one, one.result)
                else:
                    yield one
            if self._step_tokens is not None and count >= self._step_tokens:
                return

    def fail(self, jobs: list[Any], error: Exception) -> None:
        """Give an error to those whose it is: what was read for several is tried for each alone."""
        forget(error)
        if len(jobs) == 1:
            for one in jobs[0].unfinished:
                one.fail(error)
                self.ended.append(one)
            return
        for job in reversed(jobs):
            job.is_apart = True
            self.waiting.appendleft(job)

    def _leave(self, one: Entering[Any]) -> None:
        self.entering.remove(one)

    def _next(self, free: Callable[[], int]) -> Entering[Any] | None:
        """What is read next, begun if it was not; None when nothing can be."""
        under_way = [one for one in self.entering if not one.is_left_off]
        room = free() - sum(len(one.jobs) for one in under_way if one.takes_slots)
        found: list[Entering[Any] | AnyJob] = [*under_way]
        if not under_way or self._step_tokens is not None:
            for job in self.waiting:
                if job.unfinished and (room > 0 or isinstance(job, ReadJob)):
                    found.append(job)
        if not found:
            return None
        self._takes_first = not self._takes_first
        if self._takes_first or self._step_tokens is None:
            chosen = min(found, key=lambda one: one.order)
        else:
            chosen = min(found, key=_nearness)
        return chosen if isinstance(chosen, Entering) else self._begin(chosen, room)

    def _begin(self, first: AnyJob, room: int) -> Entering[Any]:
        """A waiting job's way in, with others that can share it."""
        self.waiting.remove(first)
        self._turn = max(self._turn, first.order[0])
        near = list(itertools.islice(self.waiting, LOOK_AHEAD))
        if isinstance(first, ReadJob):
            one: Entering[Any] = self._reading(first, [first])
        elif sharing := self._sharing(first, near):
            rows = ReadJob([first.context], first.method)
            one = self._reading(rows, [first, *sharing])
        else:
            group = [first]
            for job in near:
                if len(group) < room and isinstance(job, Job) and fits(job, group):
                    group.append(job)
                    self.waiting.remove(job)
            steps = prefill(self._model, group, self._options)
            one = Entering(self._model, steps, group, takes_slots=True)
        self.entering.append(one)
        return one

    def _sharing(self, first: Job, near: list[AnyJob]) -> list[Job]:
        """Jobs that ask about the same document, which one reading can serve; taken out."""
        if not first.context or not first.method.serves_memory:
            return []
        if isinstance(first.method, Shorten) and not isinstance(first.method.reader, Plain):
            return []  # a memory tells places in what was left, not in the document
        if not any(same_document(first, job) for job in near):
            return []
        found = [job for job in self.waiting if isinstance(job, Job) and same_document(first, job)]
        for job in found:
            self.waiting.remove(job)
        return found

    def _reading(self, rows: ReadJob, jobs: list[Any]) -> Entering[DocumentMemory]:
        steps = read(self._model, rows, self._options)
        return Entering(self._model, steps, jobs, takes_slots=False)

    def _hand_out(self, one: Entering[Any], memory: DocumentMemory) -> None:
        """A memory for those who have waited for it: a reader has it, the others ask it."""
        first = one.jobs[0]
        if isinstance(first, ReadJob):
            first.memory = memory
            self.ended.append(first)
            return
        first.reading_seconds = one.clock.seconds()["prefill"]
        for job in reversed(one.jobs):
            job.memory = memory
            self.waiting.appendleft(job)


def _nearness(one: Entering[Any] | AnyJob) -> tuple[int, tuple[int, int]]:
    """How near something is to its end; of equals the one that came first."""
    return one.left if isinstance(one, Entering) else one.length, one.order
