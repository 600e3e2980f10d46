"""Evidence in tokens, its ranks, and what was found of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab.asked.evidence import evidence_ranks, found_spans, place_in_span, token_spans
from remamba.text import encode
from tests.tiny import TEXT, tiny_tokenizer

OFFSETS = [(0, 0), (0, 3), (3, 7), (7, 8), (8, 12)]  # a bos and four words


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 3)], [(1, 2)]),
        ([(2, 4)], [(1, 3)]),
        ([(3, 7), (11, 12)], [(2, 3), (4, 5)]),
        ([(0, 12)], [(1, 5)]),
        ([(12, 14)], []),
    ],
)
def test_tokens_that_overlap_a_span(spans: Any, expected: Any) -> None:
    assert token_spans(OFFSETS, spans) == expected


def test_token_spans_say_what_they_quote() -> None:
    document = TEXT * 4
    start = document.index("dulcimer", 200)
    ids, offsets = encode(tiny_tokenizer(), document)
    ((low, high),) = token_spans(offsets, [(start, start + 8)])
    assert tiny_tokenizer().decode(ids[low:high]).strip() == "dulcimer"


def test_ranks_by_hand() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    evidence = [(10, 11), (12, 15), (0, 10), (8, 11), (14, 20)]
    assert evidence_ranks(scores, 10, evidence) == [4, 2, None, 4, None]
    assert evidence_ranks(torch.tensor([0.3, 0.3, 0.2]), 0, [(0, 1), (2, 9)]) == [1, 3]
    assert evidence_ranks(scores, 0, []) == []
    assert evidence_ranks(torch.zeros(0), 0, [(0, 1)]) == [None]


@pytest.mark.parametrize(
    ("row", "found", "place"),
    [
        ({"kept": [[4, 0.5]], "evidence": [[3, 5], [7, 8]], "span": [0, 9]}, [True, False], "in"),
        ({"kept": [[4, 0.5]], "evidence": [[3, 5], [7, 8]], "span": [0, 6]}, [True], "across"),
        ({"kept": [[5, 0.5]], "evidence": [[3, 5]], "span": [0, 6]}, [False], "in"),
        ({"kept": [], "evidence": [[7, 8]], "span": [0, 6]}, [], "out"),
        ({"kept": None, "evidence": [[7, 8]], "left": [True]}, [True], None),
        ({"kept": None, "evidence": [[7, 8]], "left": None}, None, None),
        ({"kept": []}, None, None),
    ],
)
def test_what_was_found(row: dict[str, Any], found: Any, place: str | None) -> None:
    assert found_spans(row) == found
    assert place_in_span(row) == (place if place in (None, "across") else f"{place}side")
