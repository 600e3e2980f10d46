"""`remamba reproduce --scale paper`: what it lacks, and its runs with models of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.paper.miniatures import MINIATURES
from lab.paper.rows import RECIPES, ROLES
from remamba.evals import leval, longbench
from tests.evals.toy import leval_folder, longbench_folder
from tests.tiny import Run


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens an answer."""
    monkeypatch.setitem(longbench.new_tokens(), "qasper", 2)
    monkeypatch.setitem(leval.NEW_TOKENS, "authors", 2)


def make_data(folder: Path, name: str) -> Path:
    if RECIPES[name].task == "leval":
        return leval_folder(folder)
    return longbench_folder(folder, "qasper", rows=1)


def test_what_the_papers_scale_lacks(refused: Run, tmp_path: Path) -> None:
    said = refused("reproduce", "table3", "--output", tmp_path / "out")
    assert "table3 at scale paper is 3 runs of longbench-e and lacks --data DIR" in said
    for role in ("mamba2-pretrained", "mamba2", "remamba2"):
        assert f"--models {role}=DIR ({ROLES[role]})" in said
    words = ("reproduce", "table3", "--output", tmp_path / "out", "--data", tmp_path)
    said = refused(*words, "--models", "mamba2=x", "remamba2=y")
    assert "mamba2-pretrained=DIR" in said and "remamba2=DIR" not in said
    said = refused(*words, "--models", "mamba2=x", "--partial")
    assert "holds no file of longbench-e" in said
    assert "is no ROLE=DIR" in refused(*words, "--models", "mamba3=x")
    assert not (tmp_path / "out").exists()


def test_some_rows_with_models_of_ones_own(remamba: Run, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", "table1")
    words = ("reproduce", "table1", "--data", data, "--output", tmp_path / "out", "--partial")
    said = remamba(*words, "--models", "remamba=remamba-tiny", "mamba=remamba-tiny")
    assert "| mamba-sft   |" in said and "| remamba-sft |" in said and "llama" not in said
    assert "27.86" in said and "the paper's" in said


def test_models_are_looked_for_before_the_first_run(refused: Run, tmp_path: Path) -> None:
    data, out = make_data(tmp_path / "data", "table2"), tmp_path / "out"
    words = ("reproduce", "table2", "--data", data, "--output", out, "--partial", "--models")
    said = refused(*words, "mamba=remamba-tiny", f"remamba={tmp_path / 'none'}")
    assert f"--model {tmp_path / 'none'} is no directory" in said
    assert "holds no config.json" in refused(*words, f"remamba={data}")
    assert not out.exists()


def test_resuming_asks_nothing_twice(remamba: Run, refused: Run, tmp_path: Path) -> None:
    data, out = make_data(tmp_path / "data", "table2"), tmp_path / "out"
    words = ("reproduce", "table2", "--data", data, "--output", out, "--partial", "--json")
    words = (*words, "--models", "remamba=remamba-tiny", "--limit", 1)
    found = remamba(*words)
    assert list(found["averages"]) == ["remamba-sft"]
    record = json.loads((out / "remamba-sft" / "run.json").read_text())
    (setting,) = (s for s in RECIPES["table2"].settings if s.role == "remamba")
    assert setting.compression.items() <= record["settings"]["method"]["compression"].items()
    assert "give --resume" in refused(*words)
    asked = (out / "remamba-sft" / "predictions" / "coursera.jsonl").stat().st_mtime_ns
    assert remamba(*words, "--resume") == found
    assert (out / "remamba-sft" / "predictions" / "coursera.jsonl").stat().st_mtime_ns == asked
    assert "was begun as" in refused(*words[:-1], 2, "--resume")


def test_other_directories_are_left_alone(refused: Run, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", "fig7")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    words = ("reproduce", "fig7", "--data", data, "--models", "remamba=remamba-tiny")
    assert "holds other files" in refused(*words, "--output", tmp_path / "out")
    assert "is a file" in refused(*words, "--output", tmp_path / "out" / "mine.txt")


def test_the_papers_numbers_of_runs() -> None:
    assert {name: len(recipe.settings) for name, recipe in RECIPES.items()} == {
        "table1": 5,
        "table2": 5,
        "table3": 3,
        "table4": 7,
        "fig1": 3,
        "fig3": 16,
        "fig4": 16,
        "fig5": 40,
        "fig7": 30,
    }
    names = [setting.name for recipe in RECIPES.values() for setting in recipe.settings]
    assert all(
        len(set(r)) == len(r) for r in ([s.name for s in x.settings] for x in RECIPES.values())
    )
    assert all(name == Path(name).name for name in names)


GIVEN: dict[str, tuple[str, ...]] = {
    "data": ("--data", "d"), "models": ("--models", "plain=d"), "limit": ("--limit", "2"),
    "partial": ("--partial",), "resume": ("--resume",), "slots": ("--slots", "3"),
}  # fmt: skip


@pytest.mark.parametrize("option", GIVEN)
def test_figure_6_refuses_what_it_has_no_use_for(option: str, refused: Run, tmp_path: Path) -> None:
    said = refused(
        "reproduce", "fig6", "--scale", "tiny", "--output", tmp_path / "o", *GIVEN[option]
    )
    assert f"{' '.join(GIVEN[option])} has no effect on fig6" in said
    assert not (tmp_path / "o").exists()


def test_figure_6_runs_where_it_is_told_to(refused: Run, tmp_path: Path) -> None:
    out = tmp_path / "o"
    said = refused("reproduce", "fig6", "--scale", "tiny", "--output", out, "--device", "bogus")
    assert "bogus" in said and not out.exists()


@pytest.mark.parametrize("option", ["partial", "slots"])
def test_miniatures_refuse_options_of_the_papers_scale(
    option: str, refused: Run, tmp_path: Path
) -> None:
    for name in MINIATURES:
        said = refused(
            "reproduce", name, "--scale", "tiny", "--output", tmp_path / "o", *GIVEN[option]
        )
        assert f"has no effect on {name} at scale tiny" in said
