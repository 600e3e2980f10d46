"""Planted rows are read and scored as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.asked.tasks import answer_spans, read_documents, score_answer
from remamba.errors import InputError
from remamba.evals.statistics import resampled
from tests.tiny import Run

ROW = {
    "id": "a",
    "document": "Ada's coat is red. Tom's is red too, and his hat is blue.",
    "questions": [{"question": " What?", "response": " red", "evidence": [0, 18]}],
}


def test_rows_of_facts_need_no_more_than_training_does(write: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", ROW, {**ROW, "id": "b", "tokens": 1500})
    documents, hashes = read_documents([file])
    first = documents[0]
    assert (first.task, first.metric, first.new_tokens, first.length) == ("facts", "exact", 8, 500)
    assert documents[1].length == 2000 and len(hashes[str(file)]) == 64
    (question,) = first.questions
    assert question == ("a-0", " What?", ["red"], [(0, 18)], [])
    assert answer_spans(first.text, question) == [(14, 17)]
    assert len(read_documents([file], limit=1)[0]) == 2  # one of each length
    assert len(read_documents([file], [700], limit=1)[0]) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "songs"}, "'task' is 'songs'; it must be one of open-values, open-names"),
        ({"metric": "bleu"}, "'metric' is 'bleu'"),
        ({"id": None}, "'id' is null"),
        ({"new_tokens": 0}, "'new_tokens' is 0"),
        ({"questions": []}, "'questions' must be a list of objects, at least one"),
        ({"questions": [{"response": "x"}]}, "question 1: 'question' is missing"),
        ({"questions": [{"question": "?", "answers": []}]}, "'answers' is empty"),
        (
            {"questions": [{"question": "?", "response": "x", "evidence": [[0, 999]]}]},
            "'evidence' holds [0, 999]; a span is [from, up to]",
        ),
        ({"questions": [{"question": "?", "response": "x", "evidence": "x"}]}, "holds None"),
    ],
)
def test_rows_that_cannot_be_used(
    changes: dict[str, Any], expected: str, write: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "f.jsonl", {**ROW, **changes})
    with pytest.raises(InputError, match=r"f\.jsonl:1") as told:
        read_documents([file])
    assert expected in str(told.value)


def test_two_rows_of_one_id(write: Any, tmp_path: Path) -> None:
    files = [write(tmp_path / name, ROW) for name in ("f.jsonl", "g.jsonl")]
    assert [document.id for document in read_documents(files)[0]] == ["a", "g/a"]
    with pytest.raises(InputError, match="'g/a' is also another row's"):
        read_documents([*files, files[1]])
    with pytest.raises(InputError, match=r"f\.jsonl:2: id 'a' is also another row's"):
        read_documents([write(files[0], ROW, ROW)])


@pytest.mark.parametrize(
    ("metric", "pred", "answers", "expected"),
    [
        ("exact", " Red \nblue", ["red"], 1.0),
        ("exact", " red hat", ["red"], 0.0),
        ("exact", " red", ["blue", "RED"], 1.0),
        ("exact", "", ["red"], 0.0),
        ("f1", " owl, mole", ["owl, hare, mole"], 0.8),
        ("f1", " owl\nhare", ["owl", "hare"], 1.0),
    ],
)
def test_scores_by_hand(metric: str, pred: str, answers: list[str], expected: float) -> None:
    assert score_answer(metric, pred, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "pred", "expected"),
    [
        ("recall", " 12, and\n34 too", 2 / 3),  # anywhere in the answer, as RULER counts
        ("recall", "", 0.0),
        ("label", " Hallway. The office", 1.0),  # its first sentence, as BABILong reads it
        ("label", " the hallway or the office", 0.0),
        ("label", " the kitchen", 0.0),
        ("label", " She is in the hallway, not the garden", 1.0),  # a label that the question has
    ],
)
def test_public_scores_by_hand(metric: str, pred: str, expected: float) -> None:
    answers = ["12", "34", "56"] if metric == "recall" else ["hallway"]
    wrong = ["office", "kitchen"]
    assert score_answer(metric, pred, answers, wrong) == pytest.approx(expected)


def test_wrong_labels_come_from_the_row(write: Any, tmp_path: Path) -> None:
    question = {"question": "?", "response": " hallway", "wrong": ["office"]}
    file = write(tmp_path / "f.jsonl", {**ROW, "questions": [question]})
    assert read_documents([file])[0][0].questions[0].wrong == ["office"]


def test_folder_is_scored(write: Any, remamba: Run, refused: Run, tmp_path: Path) -> None:
    def row(pred: str, answer: str, length: int, document: str, **more: Any) -> dict[str, Any]:
        return {"pred": pred, "answers": [answer], "length": length, "document": document, **more}

    file = write(
        tmp_path / "predictions" / "facts.jsonl",
        row(" red", "red", 500, "a"),
        row(" red", "red", 500, "a"),
        row(" red", "blue", 500, "b"),
        row(" red", "green", 1000, "c"),
    )
    words = ("eval", "score", "--task", "planted", "--output", tmp_path)
    entry = remamba(*words, "--json")["datasets"]["facts"]
    assert entry["score"] == pytest.approx((200 / 3 + 0) / 2) and entry["n"] == 4
    assert entry["lengths"]["500"] == {"score": pytest.approx(200 / 3), "n": 3}
    assert entry["constant"] == {"answer": "red", "score": pytest.approx(100 / 3)}
    assert "bootstrap over documents" in (tmp_path / "report.md").read_text()
    write(file, row("red", "red", 500, "a", metric="bleu"))
    assert "'metric' is 'bleu'" in refused(*words)


def test_documents_are_drawn_with_all_their_questions() -> None:
    scores, clusters = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    drawn = resampled("x", scores, [[0, 1, 2, 3]], clusters)
    assert set(np.round(drawn, 6)) == {0.0, 75.0, 100.0}
    assert np.allclose(
        resampled("x", scores, [[0, 1, 2, 3]], range(4)), resampled("x", scores, [[0, 1, 2, 3]])
    )
