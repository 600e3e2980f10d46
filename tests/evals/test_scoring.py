"""Folders of predictions are scored as the benchmarks' own evaluators score them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import Run

Write = Callable[..., Path]


def longbench(pred: str, *answers: str, length: int = 100, classes: Any = None) -> dict[str, Any]:
    return {"pred": pred, "answers": list(answers), "all_classes": classes, "length": length}


def score(remamba: Run, folder: Path, task: str = "longbench-e", *more: object) -> Any:
    return remamba("eval", "score", "--task", task, "--output", folder, "--json", *more)


def test_buckets_are_averaged_without_weights(remamba: Run, write: Write, tmp_path: Path) -> None:
    write(
        tmp_path / "predictions" / "hotpotqa.jsonl",
        longbench("x", "x", length=0),
        longbench("y", "x", length=3999),
        longbench("x y", "x", length=4000),
        longbench("x", "y", "x", length=7999),  # the best of several answers
        longbench("", "x", length=8000),
    )
    found = score(remamba, tmp_path)
    middle = 100 * (2 / 3 + 1) / 2
    assert found == {
        "task": "longbench-e",
        "average": pytest.approx((50 + middle) / 3),
        "datasets": {
            "hotpotqa": {
                "score": pytest.approx((50 + middle + 0) / 3),
                "n": 5,
                "buckets": {"0-4k": 50.0, "4-8k": pytest.approx(middle), "8k+": 0.0},
            }
        },
    }
    assert json.loads((tmp_path / "scores.json").read_text()) == found


def test_average_is_over_datasets(remamba: Run, write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    write(folder / "qasper.jsonl", longbench("x", "x"), longbench("", "x", length=9000))
    write(folder / "lcc.jsonl", longbench("\n# c\nx = 1", "x = 1"))
    write(folder / "passage_count.jsonl", longbench("3 or 4", "3"))
    write(folder / "passage_retrieval_en.jsonl", longbench("paragraph 3", "Paragraph 3"))
    found = score(remamba, tmp_path)
    assert list(found["datasets"]) == ["qasper", "passage_count", "passage_retrieval_en", "lcc"]
    assert found["datasets"]["qasper"]["buckets"] == {"0-4k": 100.0, "4-8k": None, "8k+": 0.0}
    assert found["average"] == (50 + 50 + 100 + 100) / 4


def test_only_three_datasets_are_cut_to_their_first_line(
    remamba: Run, write: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "predictions"
    for name in ("triviaqa", "samsum", "hotpotqa", "multi_news"):
        write(folder / f"{name}.jsonl", longbench("\nfirst\nsecond", "first"))
    write(folder / "trec.jsonl", longbench("\nfirst\nsecond", "first", classes=["first", "second"]))
    found = {name: entry["score"] for name, entry in score(remamba, tmp_path)["datasets"].items()}
    assert found["trec"] == found["triviaqa"] == 100.0
    assert found["samsum"] == pytest.approx(100.0)
    assert found["hotpotqa"] == pytest.approx(200 / 3)
    assert found["multi_news"] == pytest.approx(200 / 3)


def test_trec_takes_the_last_rows_classes(remamba: Run, write: Write, tmp_path: Path) -> None:
    write(
        tmp_path / "predictions" / "trec.jsonl",
        longbench("Food Date", "Food", classes=["Food"]),
        longbench("Food", "Food", classes=["Food", "Date"]),
    )
    assert score(remamba, tmp_path)["average"] == 75.0


def test_lines_end_at_line_feeds_only(remamba: Run, write: Write, tmp_path: Path) -> None:
    row = json.dumps(longbench("x\u2028x\u0085", "x"), ensure_ascii=False).encode()
    write(tmp_path / "predictions" / "qasper.jsonl", row, b"", row)
    assert score(remamba, tmp_path)["datasets"]["qasper"]["n"] == 2


def test_failed_predictions_count_as_zero(remamba: Run, write: Write, tmp_path: Path) -> None:
    failed = {"error": "out of memory", "answers": [""], "length": 1, "all_classes": None}
    write(
        tmp_path / "longbench-e" / "predictions" / "lcc.jsonl",
        longbench("x = 1", "x = 1"),
        {**failed, "pred": ""},  # by itself "" = "" would be 1
        failed,
    )
    assert score(remamba, tmp_path / "longbench-e")["average"] == pytest.approx(100 / 3)
    write(
        tmp_path / "leval" / "predictions" / "tpo.jsonl",
        {"pred": "A", "answers": ["A"]},
        {"pred": "", "answers": ["A"], "error": "out of memory"},
    )
    for scoring in ("official", "authors"):
        found = score(remamba, tmp_path / "leval", "leval", "--scoring", scoring)
        assert found["average"] == 50.0


def test_leval_in_its_own_fields_and_file_names(remamba: Run, write: Write, tmp_path: Path) -> None:
    rows = [
        {"query": "?", "gt": gold, "mamba-4k_pred": pred, "evaluation": "exam"}
        for pred, gold in (("B", "(B) x"), ("", "(A) y"), ("C", "(B) z"))
    ]
    write(tmp_path / "predictions" / "quality.pred.jsonl", *rows)
    write(
        tmp_path / "predictions" / "sci_fi.jsonl",
        {"pred": "true [fact: true]", "answers": ["True [fact: False]"]},
    )
    found = score(remamba, tmp_path, "leval")
    assert found["datasets"] == {
        "quality": {
            "score": pytest.approx(100 / 3),
            "n": 3,
            "constant": {"answer": "B", "score": pytest.approx(200 / 3)},
        },
        "sci_fi": {
            "score": 50.0,
            "n": 1,
            "constant": {"answer": "True [fact: False]", "score": 100.0},
        },
    }
    assert found["average"] == pytest.approx((100 / 3 + 50) / 2)
    with_quarters = score(remamba, tmp_path, "leval", "--scoring", "authors")
    assert with_quarters["datasets"]["quality"]["score"] == pytest.approx(125 / 3)


def test_table_for_people(remamba: Run, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "predictions" / "qasper.jsonl", longbench("x y", "x"))
    said = remamba("eval", "score", "--task", "longbench-e", "--output", tmp_path)
    assert " ".join(said.split("\n")[0].split()) == "| dataset | n | score | 0-4k | 4-8k | 8k+ |"
    assert "| qasper  |   1 | 66.67 | 66.67 |    - |   - |" in said


def test_tables_round_as_the_evaluator_does(remamba: Run, write: Write, tmp_path: Path) -> None:
    rows = [longbench("1" if i < 1011 else "2", "1") for i in range(4000)]
    write(tmp_path / "predictions" / "passage_count.jsonl", *rows)
    assert score(remamba, tmp_path)["average"] == 25.275
    words = ("eval", "score", "--task", "longbench-e", "--output", tmp_path)
    assert "25.28" in remamba(*words) and "25.27" not in remamba(*words)


FINE = longbench("x", "x")
BROKEN: dict[str, tuple[list[Any], str]] = {
    "no pred": ([FINE, {**FINE, "pred": None}], ":2: 'pred' is null"),
    "missing pred": ([{"answers": ["x"], "length": 1}], ":1: 'pred' is missing"),
    "pred a number": ([{**FINE, "pred": 3}], ":1: 'pred' is a number"),
    "answers null": ([{**FINE, "answers": None}], ":1: 'answers' is null"),
    "answers a text": ([{**FINE, "answers": "x"}], ":1: 'answers' must be a list"),
    "answers empty": ([{**FINE, "answers": []}], ":1: 'answers' is empty"),
    "answer null": ([{**FINE, "answers": [None]}], ":1: 'answers' must be a list of texts"),
    "no length": ([FINE, FINE, {"pred": "x", "answers": ["x"]}], ":3: 'length' is missing"),
    "length a text": ([{**FINE, "length": "12"}], ":1: 'length' is '12'"),
    "length true": ([{**FINE, "length": True}], ":1: 'length' is True"),
    "length negative": ([{**FINE, "length": -1}], ":1: 'length' is -1"),
    "same id": ([{**FINE, "id": "a"}, FINE, {**FINE, "id": "a"}], ":3: id 'a' is also"),
    "id true": ([{**FINE, "id": True}], ":1: 'id' is True"),
    "error false": ([{**FINE, "error": False}], ":1: 'error' is true or false"),
    "UTF-16": ([json.dumps(FINE).encode("utf-16")], ":1: not UTF-8"),
    "id a list": ([{**FINE, "id": []}], ":1: 'id' is []"),
    "not UTF-8": ([FINE, '{"pred": "é"}'.encode("latin-1")], ":2: not UTF-8"),
    "half a character": ([{**FINE, "pred": "\ud800"}], ":1: 'pred' holds half a character"),
    "no JSON": ([FINE, b'{"pred": "x"'], ":2: no JSON object"),
    "no object": ([["x"]], ":1: a list in place of a row"),
    "deep": ([b"[" * 100_000], ":1: no JSON object"),
    "nothing": ([], "holds no row"),
    "blank lines": ([b"", b"  "], "holds no row"),
    "ten million characters": ([{**FINE, "pred": "x" * 10_000_000}], ":1: 'pred' has 10,000,000"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rows_that_cannot_be_scored(case: str, refused: Run, write: Write, tmp_path: Path) -> None:
    rows, expected = BROKEN[case]
    write(tmp_path / "predictions" / "lcc.jsonl", FINE)
    file = write(tmp_path / "predictions" / "qasper.jsonl", *rows)
    said = refused("eval", "score", "--task", "longbench-e", "--output", tmp_path)
    assert str(file) in said and expected in said
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("trec", FINE, ":1: 'all_classes' is null; trec needs it"),
        ("passage_retrieval_en", FINE, ":1: the answer 'x' is no 'Paragraph N'"),
        ("narrativeqa", FINE, "is none of longbench-e's; its files are qasper,"),
    ],
)
def test_datasets_that_cannot_be_scored(
    name: str, row: dict[str, Any], expected: str, refused: Run, write: Write, tmp_path: Path
) -> None:
    write(tmp_path / "predictions" / f"{name}.jsonl", row)
    said = refused("eval", "score", "--task", "longbench-e", "--output", tmp_path)
    assert f"{name}.jsonl" in said and expected in said


def test_folders_that_cannot_be_scored(refused: Run, write: Write, tmp_path: Path) -> None:
    words = ("eval", "score", "--task", "leval", "--output", tmp_path)
    assert "predictions is no directory" in refused(*words)
    (tmp_path / "predictions").mkdir()
    assert "holds no <dataset>.jsonl" in refused(*words)
    row = {"pred": "A", "answers": ["A"]}
    write(tmp_path / "predictions" / "tpo.jsonl", row)
    write(tmp_path / "predictions" / "tpo.pred.jsonl", row)
    assert "are the same dataset" in refused(*words)


def test_scoring_needs_no_other_package(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "predictions" / "lcc.jsonl", FINE)
    program = (
        "import sys\n"
        "for name in ('rouge', 'fuzzywuzzy', 'Levenshtein', 'rapidfuzz', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from remamba import cli\n"
        f"words = ['eval', 'score', '--task', 'longbench-e', '--output', {str(tmp_path)!r}]\n"
        "sys.exit(cli.main(words))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no report.png: matplotlib is not installed" in done.stderr
    assert (tmp_path / "report.md").is_file() and not (tmp_path / "report.png").exists()
