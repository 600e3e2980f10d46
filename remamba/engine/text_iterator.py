"""The text of one request as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remamba.engine.request import Completion, Job

if TYPE_CHECKING:
    from remamba.engine.engine import Engine


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
            assert not self._engine.is_idle, "the job is neither waiting nor in a slot"
            self._engine.step()
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
