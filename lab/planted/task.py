"""What every planted task makes: a context, questions about it, and where their evidence stands."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from lab.planted.prose import Lengths, Prose

SPLITS = ("train", "dev", "test")
"""Entities, values and phrasings of one split occur in no other."""

Span = tuple[int, int]
"""Characters, from and up to."""


@dataclass(frozen=True)
class Asked:
    """A question about a context.

    Args:
        text: what fills {input} of the task's template.
        response: the answer as it follows the prompt, with the space before it.
        evidence: spans of the context that hold the answer, one for each thing that must be found;
            at least one.
        answers: what counts as right, without spaces around; the response's words by default.
        wrong: labels that a right answer does not name, where the metric is `label`.
    """

    text: str
    response: str
    evidence: tuple[Span, ...]
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A context and what is asked about it."""

    context: str
    questions: tuple[Asked, ...]


@dataclass(frozen=True)
class Source:
    """What tasks are made of: prose of one split's books, its measure, and the split's name."""

    prose: Prose
    lengths: Lengths
    split: str

    def range_of(self, tokens: tuple[int, int], rng: random.Random) -> tuple[int, int, int]:
        """(least, aim, most) of a context in the units of `lengths`, the aim drawn evenly."""
        low, high = tokens
        return tuple(n * self.lengths.unit for n in (low, rng.randint(low, high), high))  # type: ignore[return-value]


class Task(Protocol):
    """A kind of work.

    name: what messages call it. metric: how answers are scored. template: the LongBench dataset
    whose prompt is taken, "" for none. new_tokens: that an answer may have.
    """

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def template(self) -> str: ...
    @property
    def new_tokens(self) -> int: ...

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context of `tokens` tokens (a range) and up to so many questions.

        All chance comes from `rng`.

        Raises:
            InputError: the context is too short for the task, or the books are.
        """
        ...
