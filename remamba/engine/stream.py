"""What a loop's jobs write, as threads and coroutines hear it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from remamba.engine.answer import Answer
from remamba.engine.likelihoods import TokenLogprob
from remamba.engine.made import Made
from remamba.engine.request import Completion, Job


class Refused(RuntimeError):
    """A loop has not answered, though nothing is wrong with what was asked."""


class Busy(Refused):
    """Too many wait; it may be asked again later."""


class Closed(Refused):
    """The loop takes nothing more, or has ended before this was answered."""


class TimedOut(Refused):
    """It was not answered in the time that was given."""


class Piece(NamedTuple):
    """What has become final of an answer since the last piece of it."""

    number: int
    """Which of the answers, from 0 on."""
    text: str
    token_ids: list[int]
    """The tokens drawn since; the text may stand behind them, as it waits for whole characters."""
    logprobs: list[TokenLogprob]
    """Of each of these tokens, where they were asked for."""
    finish_reason: str | None
    """In the last piece of an answer (see `Completion.finish_reason`)."""


class Inbox:
    """Pieces on their way from the loop's thread to the one who asked."""

    def __init__(self, jobs: Sequence[Job], deadline: float | None):
        self.jobs = list(jobs)
        self.deadline = deadline
        """Of time.monotonic(); None: there is none."""
        self.is_left = False
        """Whether nobody listens any more."""
        self.error: Exception | None = None
        self._heard = [0] * len(jobs)
        self._open = len(jobs)
        """How many answers have more to come."""
        self._pieces: deque[Piece] = deque()
        self._state = threading.Condition()
        self._wakes: Callable[[], None] | None = None

    def hear(self, job: Job) -> None:
        """Take what a job has written since it was last heard (in the loop's thread)."""
        number = self.jobs.index(job)
        text = job.take_text()
        if not text and not job.is_finished and job.growing is not None:
            return
        begin = self._heard[number]
        self._heard[number] = len(job.token_ids)
        tokens, logprobs = job.token_ids[begin:], job.logprobs[begin:]
        with self._state:
            self._pieces.append(Piece(number, text, tokens, logprobs, job.finish_reason))
            self._open -= job.is_finished
        self._wake()

    def fail(self, error: Exception) -> None:
        """The error that ends the answers; the first one counts."""
        with self._state:
            if self._open:
                self.error = self.error or error
        self._wake()

    def _wake(self) -> None:
        with self._state:
            self._state.notify_all()
            wake, self._wakes = self._wakes, None
        # not inside: who is woken wants the lock, and would wait for this thread
        if wake is not None:
            wake()

    @property
    def _is_over(self) -> bool:
        return self.error is not None or not self._open

    def take(self) -> Piece | None:
        """The next piece, waited for; None behind the last.

        Raises:
            Exception: why there is no more.
        """
        with self._state:
            self._state.wait_for(lambda: self._pieces or self._is_over)
            return self._next()

    async def take_async(self) -> Piece | None:
        """`take`, without stopping the event loop."""
        running = asyncio.get_running_loop()
        while True:
            with self._state:
                if self._pieces or self._is_over:
                    return self._next()
                arrived = running.create_future()

                def wake(arrived: asyncio.Future[None] = arrived) -> None:
                    with suppress(RuntimeError):  # the event loop has ended meanwhile
                        running.call_soon_threadsafe(_settle, arrived)

                self._wakes = wake
            await arrived

    def _next(self) -> Piece | None:
        if self._pieces:
            return self._pieces.popleft()
        if self.error is not None:
            raise self.error
        return None


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


class Stream:
    """The pieces of one request's answers, for a thread or a coroutine; leaving it cancels it.

    Raises, behind the last piece: what ended the request, see `EngineLoop`.
    """

    def __init__(self, inbox: Inbox, made: Made | None, leave: Callable[[Inbox], None]):
        self._inbox = inbox
        self._made = made
        self._tell_left = leave

    @property
    def tokens_read(self) -> int:
        """How many of `tokens_to_read` were read so far."""
        return self._inbox.jobs[0].tokens_read

    @property
    def tokens_to_read(self) -> int:
        """How many tokens are read before the answers begin."""
        return self._inbox.jobs[0].length

    @property
    def completions(self) -> list[Completion]:
        """The answers, once all are finished.

        Raises:
            Exception: what ended the request.
        """
        if self._inbox.error is not None:
            raise self._inbox.error
        return [job.completion for job in self._inbox.jobs]

    @property
    def answers(self) -> list[Answer]:
        """The answers to an `Ask`, with the words that were kept, once all are finished."""
        return [self.answer(number) for number in range(len(self.completions))]

    def completion(self, number: int) -> Completion:
        """One of the answers, once it is finished, whatever becomes of the others."""
        return self._inbox.jobs[number].completion

    def answer(self, number: int) -> Answer:
        """One of the answers to an `Ask`; see `completion`."""
        assert self._made is not None, "a Request has completions; an Ask has answers"
        return self._made.answer(self.completion(number))

    @property
    def prompt_logprobs(self) -> list[TokenLogprob | None] | None:
        """Of each token of the prompt, where they were asked for, once an answer has begun."""
        return self._inbox.jobs[0].prompt_logprobs

    def result(self) -> list[Completion]:
        """The completions, waited for."""
        while self._inbox.take() is not None:
            pass
        return self.completions

    async def result_async(self) -> list[Completion]:
        """The completions, waited for without stopping the event loop."""
        while await self._inbox.take_async() is not None:
            pass
        return self.completions

    def cancel(self) -> None:
        """Leave off: the slot is free behind the step that is under way."""
        if not self._inbox.is_left:
            self._inbox.is_left = True
            self._tell_left(self._inbox)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        if (piece := self._inbox.take()) is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        if (piece := await self._inbox.take_async()) is None:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()
