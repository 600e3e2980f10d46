"""Many runs in one table, and the figures over maximum length and over p and rho."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remamba.evals.overview import by_length, by_ratios, load_runs
from tests.tiny import Run


def run_of(folder: Path, average: float, task: str = "leval", **settings: Any) -> Path:
    """A finished run as its files tell it."""
    folder.mkdir(parents=True)
    compression = {"selector": "topk", "length": 0.18, "keep_ratio": 0.009, "num_kept": None}
    base = {"model": "m/tiny", "kind": "ReMambaForCausalLM", "max_length": 6000, "data": {}}
    record = {"settings": {**base, "task": task, "compression": compression, **settings}}
    (folder / "run.json").write_text(json.dumps(record))
    entry = {"score": average, "n": 4}
    name = "tpo" if task == "leval" else "qasper"
    scores = {"task": task, "average": average, "datasets": {name: entry}}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def ratios(p: float, rho: float) -> dict[str, Any]:
    return {"selector": "topk", "length": p, "keep_ratio": rho, "num_kept": None}


def test_table_has_the_papers_columns(remamba: Run, tmp_path: Path) -> None:
    first = run_of(tmp_path / "a", 25.0)
    second = run_of(tmp_path / "b", 30.5, max_length=2000, limit=4)
    said = remamba("eval", "table", first, second)
    assert said.splitlines()[0].split() == [
        "|",
        "run",
        "|",
        "tokens",
        "|",
        "TOEFL",
        "|",
        "average",
        "|",
    ]
    assert "| b   |   2000 | 30.50 |   30.50 |" in said
    assert "Only the first questions of each dataset: b." in said
    found = remamba("eval", "table", first, "--json")
    assert found[0]["average"] == 25.0 and found[0]["run"] == str(first)


def test_table_of_short_tasks(remamba: Run, tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", 25.0, "short", max_length=None)
    assert "| a   |      - |  25.00 |   25.00 |" in remamba("eval", "table", run)


def test_figure_of_lengths(remamba: Run, tmp_path: Path) -> None:
    folders = [
        run_of(tmp_path / "a", 25.0, max_length=2000),
        run_of(tmp_path / "b", 20.0, max_length=1000),
        run_of(tmp_path / "c", 15.0, compression=None),
        run_of(tmp_path / "d", 16.0, compression=None, model="m/llama", shorten="bm25"),
        run_of(tmp_path / "e", 17.0, compression=None, baseline="bm25"),
        run_of(tmp_path / "f", 18.0, compression=None, baseline="truncate"),
    ]
    assert by_length(load_runs(folders)) == {
        "tiny": [(1000, 20.0), (2000, 25.0)],
        "tiny plain": [(6000, 15.0)],
        "llama plain bm25": [(6000, 16.0)],
        # runs from before the option was called shorten: another BM25, the same last tokens
        "tiny plain bm25 of 100-word chunks": [(6000, 17.0)],
        "tiny plain last": [(6000, 18.0)],
    }
    remamba("eval", "table", *folders, "--figure", "lengths", "--file", tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_figure_of_ratios(remamba: Run, refused: Run, tmp_path: Path) -> None:
    folders = [
        run_of(tmp_path / f"{p}-{rho}", 100 * p + rho, compression=ratios(p, rho))
        for p in (0.1, 0.2)
        for rho in (0.01, 0.05)
    ]
    cells = by_ratios(load_runs(folders))
    assert cells[0.2, 0.05] == pytest.approx(20.05) and len(cells) == 4
    drawn = ("--figure", "ratios", "--file", tmp_path / "f.svg")
    remamba("eval", "table", *folders, *drawn)
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()
    other = run_of(tmp_path / "short", 1.0, compression=ratios(0.3, 0.1), max_length=1000)
    assert "differ in more than p and rho" in refused("eval", "table", *folders, other, *drawn)
    again = run_of(tmp_path / "again", 1.0, compression=ratios(0.1, 0.01))
    assert "two runs have p = 0.1 and rho = 0.01" in refused(
        "eval", "table", *folders, again, *drawn
    )
    plain = run_of(tmp_path / "plain", 1.0, compression=None)
    assert "has no rho" in refused("eval", "table", plain, *drawn)


def test_what_makes_no_table(refused: Run, tmp_path: Path) -> None:
    leval = run_of(tmp_path / "a", 1.0)
    longbench = run_of(tmp_path / "b", 1.0, "longbench-e")
    assert "the runs are of leval and longbench-e" in refused("eval", "table", leval, longbench)
    assert "is no evaluation's" in refused("eval", "table", tmp_path / "none")
    (leval / "scores.json").write_text("{}")
    assert "has no scores ('task')" in refused("eval", "table", leval)
    (leval / "scores.json").unlink()
    assert "has no scores" in refused("eval", "table", leval)
    assert "go together" in refused("eval", "table", longbench, "--figure", "lengths")
    words = ("--figure", "lengths", "--file", "f.gif")
    assert "must end in" in refused("eval", "table", longbench, *words)
