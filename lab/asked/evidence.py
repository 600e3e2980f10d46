"""Evidence: the tokens that hold an answer, how high they score, and whether they were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def token_spans(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """The tokens that overlap each span of characters, from and up to.

    Args:
        offsets: (start, stop) characters of each token, in ascending order but for tokens that
            stand for no character.
        spans: (start, stop) of characters; one without a token is left out.
    """
    found = []
    for start, stop in spans:
        low = _first(offsets, lambda token, start=start: token[1] > start)
        high = low
        while high < len(offsets) and offsets[high][0] < stop:
            high += 1
        if low < high:
            found.append((low, high))
    return found


def _first(offsets: Sequence[tuple[int, int]], holds: Any) -> int:
    """The first token for which `holds`, which stays true behind it (bisection)."""
    low, high = 0, len(offsets)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(offsets[middle]) else (middle + 1, high)
    return low


def evidence_ranks(
    scores: Tensor, start: int, evidence: Sequence[tuple[int, int]]
) -> list[int | None]:
    """The rank of each evidence's best-scored token among a span's positions, 1 = best.

    Args:
        scores: (m,) of the span's positions.
        start: the first of them.
        evidence: token spans; None is told of one that lies outside the span.
    """
    ranks: list[int | None] = []
    for low, high in evidence:
        own = scores[max(low - start, 0) : max(high - start, 0)]
        ranks.append(int((scores > own.max()).sum()) + 1 if len(own) else None)
    return ranks


def found_spans(row: Mapping[str, Any], name: str = "evidence") -> list[bool] | None:
    """Of each token span of a prediction's evidence that lies in its span: whether it was found.

    That is: a token of it was kept, or where nothing is selected but the document was shortened,
    all of it was left (`left`). None where the row tells neither.

    Args:
        name: evidence, or value: the answers in it.
    """
    spans, kept = row.get(name), row.get("kept")
    if spans is None:
        return None
    if kept is None:
        return row.get("left") if name == "evidence" else None
    first, last = row.get("span") or (0, max((stop for _, stop in spans), default=0))
    spans = [(start, stop) for start, stop in spans if start < last and stop > first]
    positions = [position for position, _ in kept]
    return [any(start <= p < stop for p in positions) for start, stop in spans]


def place_in_span(row: Mapping[str, Any]) -> str | None:
    """Where a prediction's evidence lies: "inside" its span, "outside", or "across" the border."""
    span, evidence = row.get("span"), row.get("evidence")
    if span is None or not evidence:
        return None
    start, stop = span
    if all(start <= low and high <= stop for low, high in evidence):
        return "inside"
    if all(high <= start or low >= stop for low, high in evidence):
        return "outside"
    return "across"
