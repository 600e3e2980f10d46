"""Intervals and paired comparison of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remamba import cli
from remamba.evals.statistics import RESAMPLES, interval, resampled, sign_test
from tests.tiny import Run

Write = Callable[..., Path]


def run_of(write: Write, remamba: Run, folder: Path, preds: str, ids: bool = True) -> Path:
    """A scored run on tpo whose right answers are all B."""
    rows: list[dict[str, Any]] = [{"pred": pred, "answers": ["B"]} for pred in preds]
    if ids:
        rows = [{"id": str(i), **row} for i, row in enumerate(rows)]
    write(folder / "predictions" / "tpo.jsonl", *rows)
    remamba("eval", "score", "--task", "leval", "--output", folder)
    return folder


def test_resampled_scores_are_means_of_strata() -> None:
    found = resampled("x", [1.0, 1.0, 0.0, 0.0], [[0, 1], [2], [3], []])
    assert found.shape == (RESAMPLES,)
    assert np.allclose(found, 100 / 3)  # nothing varies inside a stratum
    varied = resampled("x", [1.0, 0.0], [[0, 1]])
    assert set(varied) == {0.0, 50.0, 100.0}
    assert abs(varied.mean() - 50) < 3
    assert interval(varied) == (0.0, 100.0)


def test_datasets_draw_apart_and_runs_draw_alike() -> None:
    scores, strata = [1.0, 0.0, 0.0, 1.0, 1.0], [[0, 1, 2, 3, 4]]
    assert (resampled("a", scores, strata) == resampled("a", scores, strata)).all()
    assert (resampled("a", scores, strata) != resampled("b", scores, strata)).any()


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([0, 0], [0, 0], 1.0),
        ([0] * 6, [1] * 6, 2 / 64),
        ([0, 1], [1, 0], 1.0),
        ([0, 0, 0, 1], [1, 1, 1, 0], 2 * (1 + 4) / 16),
        ([0.5] * 5 + [1], [1] * 5 + [1], 2 / 32),
    ],
)
def test_sign_test(first: list[float], second: list[float], p: float) -> None:
    assert sign_test(first, second) == pytest.approx(p)


def test_compare(write: Write, remamba: Run, tmp_path: Path) -> None:
    first = run_of(write, remamba, tmp_path / "plain", "AAAAAAAB")
    second = run_of(write, remamba, tmp_path / "better", "BBBBBBAA")
    found = remamba("eval", "compare", first, second, "--json")
    pair = found["datasets"]["tpo"]
    assert (pair["n"], pair["first"], pair["second"]) == (8, 12.5, 75.0)
    assert (pair["better"], pair["worse"]) == (6, 1)
    assert pair["p"] == pytest.approx(2 * (1 + 7) / 128)
    low, high = pair["difference"]
    assert 0 < low < 62.5 < high <= 100
    assert found["average"]["difference"] == pair["difference"]
    said = remamba("eval", "compare", first, second)
    assert "plain" in said and "better" in said and "+62.50" in said


def test_compare_takes_common_questions_by_id(write: Write, remamba: Run, tmp_path: Path) -> None:
    first = run_of(write, remamba, tmp_path / "a", "BA")
    second = run_of(write, remamba, tmp_path / "b", "BBBB")
    pair = remamba("eval", "compare", first, second, "--json")["datasets"]["tpo"]
    assert (pair["n"], pair["first"], pair["second"]) == (2, 50.0, 100.0)


def test_compare_keeps_the_scores_of_the_whole_runs(
    write: Write, remamba: Run, tmp_path: Path
) -> None:
    row = {"pred": "Food Date", "answers": ["Food"], "length": 1, "all_classes": ["Food"]}
    last = {**row, "id": "last", "all_classes": ["Food", "Date"]}
    for name, rows in (("a", [{**row, "id": "0"}, last]), ("b", [{**row, "id": "0"}])):
        write(tmp_path / name / "predictions" / "trec.jsonl", *rows)
        remamba("eval", "score", "--task", "longbench-e", "--output", tmp_path / name)
    found = remamba("eval", "compare", tmp_path / "a", tmp_path / "b", "--json")["datasets"]["trec"]
    # run a's last row has two classes, and they are those of all its rows
    assert (found["n"], found["first"], found["second"]) == (1, 50.0, 100.0)


def test_compare_refuses_what_cannot_be_paired(
    write: Write, remamba: Run, refused: Run, tmp_path: Path
) -> None:
    first = run_of(write, remamba, tmp_path / "a", "BA")
    bare = run_of(write, remamba, tmp_path / "bare", "BAA", ids=False)
    assert "without ids cannot be paired" in refused("eval", "compare", first, bare)
    assert "is no scored run" in refused("eval", "compare", first, tmp_path / "nothing")
    row = {"id": "0", "pred": "x", "answers": ["x"], "length": 1}
    write(tmp_path / "other" / "predictions" / "lcc.jsonl", row)
    remamba("eval", "score", "--task", "longbench-e", "--output", tmp_path / "other")
    assert "compare runs of one kind" in refused("eval", "compare", first, tmp_path / "other")
    write(
        tmp_path / "asked" / "predictions" / "tpo.jsonl", {"id": "0", "pred": "A", "answers": ["A"]}
    )
    remamba("eval", "score", "--task", "leval", "--output", tmp_path / "asked")
    assert "not the same question" in refused("eval", "compare", first, tmp_path / "asked")


def test_report_shows_what_is_chance(write: Write, remamba: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows = [{"pred": "A", "answers": [letter]} for letter in "ABCDABCDDD"]
    write(folder / "predictions" / "tpo.jsonl", *rows)
    remamba("eval", "score", "--task", "leval", "--output", folder)
    report = (folder / "report.md").read_text()
    assert "how they were made is not known" in report
    assert "- tpo: A 100.0 %" in report
    line = next(line for line in report.splitlines() if "no difference" in line)
    assert line.split()[1:12:2] == ["tpo", "20.00", "D", "40.00", "0.688", "no"]


@pytest.mark.parametrize(("questions", "verdict"), [(2, "no"), (5, "no"), (6, "below")])
def test_few_questions_prove_nothing(
    questions: int, verdict: str, write: Write, remamba: Run, tmp_path: Path
) -> None:
    rows = [{"pred": "A", "answers": ["B"]}] * questions
    write(tmp_path / "predictions" / "quality.jsonl", *rows)
    remamba("eval", "score", "--task", "leval", "--output", tmp_path)
    report = (tmp_path / "report.md").read_text()
    # all wrong: the bootstrap alone would be sure of two questions
    assert "| quality |   2 |".replace("2", str(questions)) in report and "without width" in report
    (line,) = (line for line in report.splitlines() if "100.00" in line)
    assert line.split()[11] == verdict


def test_report_of_an_unfinished_run_says_so(
    write: Write, remamba: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "predictions" / "quality.jsonl", {"pred": "A", "answers": ["A"]})
    for status, count in (("running", 1), ("finished", 0)):
        write(tmp_path / "run.json", {"status": status, "settings": {"data": {}}})
        words = ("eval", "score", "--task", "leval", "--output", str(tmp_path))
        assert cli.main(list(words)) == 0
        said = "This run was not finished"
        assert capsys.readouterr().err.count(said) == count
        assert (tmp_path / "report.md").read_text().count(said) == count


def test_overwritten_report_is_whole_or_old(
    write: Write, remamba: Run, refused: Run, tmp_path: Path
) -> None:
    folder = run_of(write, remamba, tmp_path / "a", "BA")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    write(folder / "predictions" / "coursera.jsonl", {"pred": None, "answers": ["A"]})
    assert ":1: 'pred' is null" in refused("eval", "score", "--task", "leval", "--output", folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before == after and set(before) == {
        "scores.json",
        "report.md",
        "report.json",
        "report.png",
    }
