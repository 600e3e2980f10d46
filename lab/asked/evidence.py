"""Evidence: the tokens that hold an answer, how high they score, and whether they were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from remamba.methods.selection import Span
from remamba.model.rows import past_end, to_device


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
    scores: Tensor, span: Span, evidence: Sequence[Sequence[tuple[int, int]]]
) -> list[list[int | None]]:
    """The rank of each evidence's best-scored token among the span's positions, 1 = best.

    Args:
        scores: (b, m) over the span of each row.
        span: of each row.
        evidence: token spans of each row; None is told of one that lies outside the span.
    """
    most = max(map(len, evidence), default=0)
    if most == 0 or scores.shape[1] == 0:
        return [[None] * len(spans) for spans in evidence]
    places = torch.zeros(len(evidence), most, 2, dtype=torch.long)
    for row, spans in enumerate(evidence):
        if spans:
            places[row, : len(spans)] = torch.tensor(spans)
    places = torch.minimum(
        (places - span.start[:, None, None]).clamp(min=0), span.length[:, None, None]
    )
    low, high = to_device(places, scores.device).unbind(dim=2)
    scores = scores.masked_fill(past_end(span.length, scores.shape[1], scores.device), -torch.inf)
    column = torch.arange(scores.shape[1], device=scores.device)
    ranks = []
    for i in range(most):
        outside = (column < low[:, i, None]) | (column >= high[:, i, None])
        best = scores.masked_fill(outside, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((scores > best).sum(dim=1) + 1)
    found = torch.stack(ranks, dim=1).tolist()
    is_inside = (places[..., 0] < places[..., 1]).tolist()
    return [
        [rank if there else None for rank, there, _ in zip(*row, strict=False)]
        for row in zip(found, is_inside, evidence, strict=True)
    ]


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
