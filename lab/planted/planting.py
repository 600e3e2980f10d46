"""Puts sentences between those of a book, at places of their own, within a budget of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from lab.planted.prose import PARAGRAPH, Lengths
from lab.planted.task import Source, Span
from remamba.errors import InputError

SHARE = 0.8  # of a context may be planted
TRIES = 50


class Planted(Protocol):
    """What can be planted: something with a text of one sentence or more."""

    @property
    def text(self) -> str: ...


P = TypeVar("P", bound=Planted)


def compose(
    source: Source,
    rng: random.Random,
    tokens: tuple[int, int],
    per_1000: float,
    draw: Callable[[int], list[P]],
    enough: Callable[[list[P]], bool],
    depths: Sequence[float] = (),
) -> tuple[str, list[P], list[Span]]:
    """A context, what is planted in it, and where each stands.

    Args:
        tokens: range of the context's length.
        per_1000: things in every 1,000 tokens, as far as they fit in 4/5 of the text; 0: none.
        draw: things to plant, so many or what few the task needs.
        enough: whether these will do; else others are drawn.
        depths: as in `plant`.

    Raises:
        InputError: nothing drawn was enough for what fits, or the books are too short.
    """
    room = source.range_of(tokens, rng)
    planted: list[P] = []
    if per_1000:
        count = max(1, round(per_1000 * room[1] / source.lengths.unit / 1000))
        for _ in range(TRIES):
            planted = fitting(source.lengths, SHARE * room[1], draw(count))
            if enough(planted):
                break
        else:
            raise InputError(
                f"--tokens {tokens[0]} {tokens[1]}: too short for a question's facts; "
                "give more tokens"
            )
    return plant(source, rng, room, planted, depths)


def fitting(lengths: Lengths, room: float, drawn: Sequence[P]) -> list[P]:
    """Those of the drawn that there is room for, the first ones first."""
    kept = []
    for one in drawn:
        cost = lengths.cost(" " + one.text)
        if cost <= room:
            kept.append(one)
            room -= cost
    return kept


def plant(
    source: Source,
    rng: random.Random,
    room: tuple[int, int, int],
    planted: list[P],
    depths: Sequence[float] = (),
    *,
    joined: bool = False,
) -> tuple[str, list[P], list[Span]]:
    """A context, what is planted in it, and where each stands.

    Args:
        room: (least, aim, most) of the context in the units of `source.lengths`.
        depths: the first ones stand at these shares of the context, all others anywhere.
        joined: the prose may go on in the next books.

    Raises:
        InputError: the books are too short.
    """
    used = sum(source.lengths.cost(" " + one.text) for one in planted)
    low, aim, high = room
    sentences = source.prose.passage(rng, low - used, aim - used, high - used, joined=joined)
    if not sentences:
        unit = source.lengths.unit
        raise InputError(
            f"--tokens {low // unit} {high // unit}: the books are too short for documents of this "
            "length; give longer books or fewer tokens"
        )
    slots = [i for i, (_, is_open) in enumerate(sentences) if is_open] or [len(sentences) - 1]
    after: dict[int, list[int]] = {}
    for i in range(len(planted)):
        if i < len(depths):
            slot = slots[min(int(depths[i] * len(slots)), len(slots) - 1)]
        else:
            slot = rng.choice(slots)
        after.setdefault(slot, []).append(i)

    pieces, length, spans = [], 0, {}
    for i, (text, _) in enumerate(sentences):
        if not i:
            text = text[len(PARAGRAPH) :] if text.startswith(PARAGRAPH) else text[1:]
        pieces.append(text)
        length += len(text)
        for j in after.get(i, ()):
            text = planted[j].text
            spans[j] = length + 1, length + 1 + len(text)
            pieces.append(" " + text)
            length += 1 + len(text)
    return "".join(pieces), planted, [spans[j] for j in range(len(planted))]
