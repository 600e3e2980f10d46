"""Evidence in tokens, its ranks, what was found of it; BM25 and the passages that it finds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lab.asked.evidence import evidence_ranks, found_spans, place_in_span, token_spans
from lab.asked.passages import Passages, own_words, split_passages
from remamba.evals.bm25 import BM25
from remamba.methods.selection import Span
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
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 9.0], [0.3, 0.3, 0.2, 8.0, 8.0]])
    span = Span(torch.tensor([10, 0]), torch.tensor([14, 3]))  # the last columns are no positions
    evidence = [[(10, 11), (12, 15), (0, 10)], [(0, 1), (2, 9)]]
    assert evidence_ranks(scores, span, evidence) == [[4, 2, None], [1, 3]]
    assert evidence_ranks(scores, span, [[], [(1, 2)]]) == [[], [1]]
    assert evidence_ranks(torch.zeros(1, 0), Span(*torch.zeros(2, 1).long()), [[(0, 1)]]) == [
        [None]
    ]


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


def test_bm25_by_hand() -> None:
    index = BM25(["red dog, red", "dog", "a cat sat here"])  # 3, 1 and 4 words; mean 8 / 3
    rare, common = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    share = [1.2 * (0.25 + 0.75 * n / (8 / 3)) for n in (3, 1)]
    first = rare * 2 * 2.2 / (2 + share[0]) + common * 2.2 / (1 + share[0])
    assert index.scores("Red DOG?") == pytest.approx([first, common * 2.2 / (1 + share[1]), 0.0])


def test_passages_are_whole_sentences_and_all_of_the_document() -> None:
    document = "".join(f"Sentence {i} has five words. " for i in range(9)) + "x " * 60
    ids, offsets = encode(tiny_tokenizer(), document)
    places = split_passages(document, offsets, 30)
    assert [start for start, _ in places[1:]] == [stop for _, stop in places[:-1]]
    assert places[0][0] == 0 and places[-1][1] == len(ids)
    assert all(0 < stop - start <= 30 for start, stop in places)
    told = [document[offsets[a][0] : offsets[b - 1][1]].strip() for a, b in places]
    assert told[0].startswith("Sentence 0") and told[0].endswith("words.")
    assert told[1].startswith("Sentence ")


def test_best_passages_in_the_documents_order() -> None:
    lines = [f"Nothing is said in line {i} here.\n" for i in range(8)]
    lines[1], lines[6] = "The owl of Ada is grey.\n", "The owl of Tom and of Ada, an owl.\n"
    document = "".join(lines)
    ids, offsets = encode(tiny_tokenizer(), document)
    index = Passages(document, offsets, 30)
    both = tiny_tokenizer().decode([ids[i] for i in index.best("owl Ada", 60)])
    assert both.index("grey") < both.index("Tom")
    assert len(index.best("owl Ada", 60)) <= 60
    assert index.best("owl", 10_000) == list(range(len(ids)))


def test_words_of_the_template_are_no_query() -> None:
    asked = ["Question: Who is Ada?\nAnswer:", "Question: Who saw Tom Hill?\nAnswer:"]
    assert own_words(asked) == ["is Ada", "saw Tom Hill"]
    assert own_words(asked[:1] * 2) == ["Question Who is Ada Answer"] * 2
