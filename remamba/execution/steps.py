"""Work in steps: it stops behind every piece that was read, so that others can go on meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[int, None, T]
"""Yields how many positions were read since the last stop, all rows counted; returns the result."""


def finish(steps: Steps[T]) -> T:
    """The result of steps, which are taken one behind the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
