"""`remamba reproduce --scale tiny`: rows, reports and figures of small models; --train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.commands import miniature_training
from lab.paper import miniatures
from lab.paper.miniatures import MINIATURES
from remamba import cli
from remamba.engine.reader import Reader
from tests.tiny import PAPER, WHOLE, Run, save_tiny


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest documents of two tasks, and four cells of the map."""
    for name, found in MINIATURES.items():
        few = found._replace(tasks=("facts", "retrieval"), lengths=(150, 250))
        few = few._replace(map_p=found.map_p[-2:], map_rho=found.map_rho[:2])
        monkeypatch.setitem(miniatures.MINIATURES, name, few)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights, in folders as --train leaves them."""
    path = tmp_path_factory.mktemp("models")
    save_tiny(path / "base-wide", seed=5, method="plain")
    save_tiny(path / "kept" / "plain-s1", method="plain")
    for name, form in (
        ("sentences", WHOLE),
        ("sentences-random", WHOLE.replace(selector="random")),
        ("sentences-fixed", WHOLE.replace(selector="fixed")),
        ("sentences-multiplicative", WHOLE),
        ("sentences-selective", WHOLE.replace(adaption="selective")),
        ("paper", PAPER),
        ("p20", PAPER),
    ):
        save_tiny(path / "kept" / f"{name}-s1", compression=form)
    save_tiny(path / "mamba", backbone="mamba", compression=WHOLE)
    return path


def given(models: Path, **roles: str) -> list[str]:
    return ["--models", *(f"{role.replace('_', '-')}={models / at}" for role, at in roles.items())]


def words(name: str, out: Path, *more: object) -> list[object]:
    return ["reproduce", name, "--scale", "tiny", "--output", out, "--limit", 1, *more]


def predictions(folder: Path) -> list[dict[str, Any]]:
    lines = [file.read_text().splitlines() for file in sorted((folder / "predictions").iterdir())]
    return [json.loads(line) for some in lines for line in some]


@pytest.mark.parametrize(
    "name",
    ["table1", "table3", *(pytest.param(x, marks=pytest.mark.slow) for x in ("fig5", "fig7"))],
)
def test_the_embedded_models(name: str, remamba: Run, tmp_path: Path) -> None:
    found = remamba(*words(name, tmp_path / "out"), "--json")
    rows = {
        "table1": ["base", "plain", "two-stage"],
        "table3": ["stage1", "two-stage"],
        "fig5": ["plain", "two-stage", "random", "fixed", "multiplicative", "selective"],
        "fig7": ["two-stage", "plain"],
    }[name]
    assert list(found["averages"]) == list(found["rows"]) == rows
    for row, told in found["rows"].items():
        own = f"-{row}" if row in ("base", "plain") else "-mamba2" * (name == "table3")
        assert told["model"] == f"remamba-tiny{own}"
    for row in rows:
        asked = predictions(tmp_path / "out" / row)
        assert len(asked) == 16 and {one["task"] for one in asked} == {"facts", "retrieval"}
        lengths = found["rows"][row]["datasets"]["facts"]["lengths"]
        right = [one["pred"].strip() in one["answers"] for one in asked if one["task"] == "facts"]
        scores = [cell["score"] * cell["n"] / 100 for cell in lengths.values()]
        assert sum(right) == pytest.approx(sum(scores))
    report = (tmp_path / "out" / "report.md").read_text()
    assert MINIATURES[name].title in report and "cannot be compared with these" in report
    assert "accuracy in %" in report and "95 % interval" in report
    assert "closed set of planted facts, and no more" in report
    assert "BM25 over a document's paragraphs answers all 230" in report
    # plain Mamba has a model of its own, Mamba-2 has not
    assert ("stage 1 of the same weights" in report) == (name == "table3")
    assert (
        report.count("not retrained" if name == "fig7" else "Not retrained: ")
        == {
            "table1": 0,
            "table3": 0,
            "fig5": 2,  # beside each of its tables
            "fig7": 1,
        }[name]
    )
    constant = predictions(tmp_path / "out" / "constant")
    facts = [one for one in constant if one["task"] == "facts"]
    assert len({one["pred"] for one in facts}) == 1
    assert "| best constant answer |" in report
    worth = found["constant"]["datasets"]["facts"]["lengths"]
    right = sum(one["pred"] in one["answers"] for one in facts)
    scores = [cell["score"] * cell["n"] / 100 for cell in worth.values()]
    assert right == pytest.approx(sum(scores)) and right > 0
    assert (tmp_path / "out" / f"{name}.png").is_file() == name.startswith("fig")
    assert [(cell["p"], cell["rho"]) for cell in found["map"]] == [
        (p, rho) for p in MINIATURES[name].map_p for rho in MINIATURES[name].map_rho
    ]


def test_models_of_ones_own_have_rows_of_their_own(
    remamba: Run, models: Path, tmp_path: Path
) -> None:
    roles = {"plain": "kept/plain-s1", "base": "base-wide", "two_stage": "kept/sentences-s1"}
    own = given(models, **roles, paper="kept/paper-s1")
    found = remamba(*words("table2", tmp_path / "out"), "--json", *own)
    assert list(found["rows"]) == ["base", "plain", "two-stage", "paper"]
    assert found["missing"] == [] and not any(r["same_weights"] for r in found["rows"].values())
    assert [Path(row["model"]).name for row in found["rows"].values()] == [
        "base-wide", "plain-s1", "sentences-s1", "paper-s1",
    ]  # fmt: skip
    settings = [row["method"].get("compression") for row in found["rows"].values()]
    assert settings[:2] == [None, None] and settings[2] == WHOLE.to_dict()
    assert (settings[3]["length"], settings[3]["keep_ratio"]) == (0.2, 0.05)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "left out" not in report and "same weights" not in report


def test_every_other_item_runs(remamba: Run, models: Path, tmp_path: Path) -> None:
    own = given(models, two_stage="kept/sentences-s1")
    for name in ("table3", "table4", "fig3", "fig4"):
        found = remamba(*words(name, tmp_path / name), "--json", *own)
        assert len(found["rows"]) == (7 if name == "table4" else 2)
        report = (tmp_path / name / "report.md").read_text()
        assert ("Not retrained: s0.0, s0.1" in report) == (name == "table4")
        if name == "table4":
            starts = [found["rows"][f"s0.{i}"]["method"]["compression"]["start"] for i in range(5)]
            assert starts == [0.0, 0.1, 0.2, 0.3, 0.4]
    found = remamba(*words("fig1", tmp_path / "fig1"), "--json", *given(models, base="base-wide"))
    assert list(found["rows"]) == ["base"] and (tmp_path / "fig1" / "fig1.png").is_file()


def test_resuming_asks_nothing_twice(
    remamba: Run, refused: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = given(models, two_stage="kept/sentences-s1"), tmp_path / "out"
    found = remamba(*words("table1", out), "--json", *own)
    assert "give --resume" in refused(*words("table1", out), *own)
    assert "was begun as" in refused(*words("table2", out), "--resume", *own)
    other = given(models, two_stage="kept/sentences-selective-s1", plain="kept/plain-s1")
    assert "was begun with" in refused(*words("table1", out), "--resume", *other)
    (out / "two-stage" / "predictions" / "facts.jsonl").unlink()
    asked: list[int] = []
    answer = Reader.answer

    def counted(self: Any, asks: Any) -> Any:
        asked.append(len(asks))
        return answer(self, asks)

    monkeypatch.setattr(Reader, "answer", counted)
    assert remamba(*words("table1", out), "--json", "--resume", *own) == found
    assert sum(asked) == 16  # by the row that lost answers; a batch holds both tasks
    asked.clear()
    assert remamba(*words("table1", out), "--json", "--resume", *own) == found
    assert asked == []


def test_what_cannot_be_used_is_told_in_one_line(
    refused: Run, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "is for --scale paper" in refused(*words("table1", out), "--data", tmp_path)
    assert "has no effect on fig6" in refused(*words("fig6", out)[:-2], "--data", tmp_path)
    assert "--limit 0" in refused(*words("table1", out)[:-1], 0)
    assert "is no ROLE=DIR" in refused(*words("table1", out), "--models", "mamba=x")
    assert "no row is a random" in refused(*words("table1", out), "--models", "random=x")
    assert "remamba-tiny" in refused(*words("table1", out), "--models", "two-stage=./none")
    assert "is about mamba2" in refused(*words("table3", out), *given(models, two_stage="mamba"))
    train = ("--train", "--books", tmp_path)
    assert "needs --books" in refused(*words("table1", out), "--train")
    assert "is for --train" in refused(*words("table1", out), "--books", tmp_path)
    assert "leave --models" in refused(*words("table1", out), *train, "--models", "plain=x")
    assert "all items but fig6" in refused(*words("fig6", out)[:-2], *train)
    paper = ("reproduce", "table1", "--output", out)
    assert "goes with --scale tiny" in refused(*paper, *train)
    assert not out.exists()


# Stands in for the recipe: notes what it is told, and leaves models where the recipe does.
RECIPE = """
import os, shutil, sys

given = os.environ
names = ("BRANCHES", "FAMILY", "SEEDS", "BOOKS", "PYTHON")
with open(given["OUT"] + ".log", "a") as log:
    print(*(given[name] for name in names), sep="|", file=log)
print("to stdout")
if "FAILS" in given:
    sys.exit(int(given["FAILS"]))
models = f"{given['OUT']}/{given['FAMILY']}-{given['SIZE']}"
if not os.path.exists(models):
    shutil.copytree("MODELS", models)
"""


@pytest.fixture
def books(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of books, beside a recipe that copies models."""
    for name in ("train-00", "dev"):
        (tmp_path / f"{name}.jsonl.xz").touch()
    (tmp_path / "evidence.py").write_text(RECIPE.replace("MODELS", str(models)))
    monkeypatch.setattr(miniature_training, "RECIPE", tmp_path / "evidence.py")
    monkeypatch.setenv("SCALE", "toy")
    monkeypatch.delenv("FAMILY", raising=False)
    return tmp_path


def test_training_makes_every_row_a_model_of_its_own(remamba: Run, books: Path) -> None:
    out = books / "out"
    train = ("--train", "--books", books, "--device", "cpu", "--json")
    found = remamba(*words("fig5", out), *train)
    (log,) = (out / "models.log").read_text().splitlines()
    ablations = ("random", "fixed", "multiplicative", "selective")
    branches = " ".join(["sentences plain", *(f"sentences-{name}" for name in ablations)])
    assert log == f"{branches}|mamba|1|{books}|{sys.executable}"
    rows = found["rows"]
    assert list(rows) == ["plain", "two-stage", *ablations]
    assert not any(row["same_weights"] for row in rows.values())
    at = out / "models" / "mamba-toy" / "kept"
    assert rows["random"]["model"] == str(at / "sentences-random-s1")
    assert rows["random"]["method"]["compression"]["selector"] == "random"
    assert remamba(*words("fig5", out), *train, "--resume") == found  # the recipe goes on itself
    assert len((out / "models.log").read_text().splitlines()) == 2


def test_training_of_mamba_2_and_of_the_base(remamba: Run, books: Path) -> None:
    train = ("--train", "--books", books, "--device", "cpu", "--json")
    found = remamba(*words("table3", books / "t3"), *train)
    assert (books / "t3" / "models.log").read_text().startswith("sentences plain p20|mamba2|")
    assert Path(found["rows"]["base"]["model"]) == books / "t3" / "models/mamba2-toy/base-wide"
    found = remamba(*words("fig1", books / "f1"), *train)
    assert (books / "f1" / "models.log").read_text().startswith("none|mamba|")
    assert list(found["rows"]) == ["base"]


def test_training_that_fails_is_no_fault_of_the_user(
    books: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "1")
    train = ("--train", "--books", books, "--device", "cpu")
    with pytest.raises(SystemExit, match="ended with 1"):
        cli.main([str(word) for word in words("table1", books / "out", *train)])
    said = capfd.readouterr()
    assert said.out == "" and "to stdout" in said.err


def test_training_says_what_it_lacks(
    refused: Run, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*more: object) -> list[object]:
        return words("table1", books / "out", "--train", "--books", books, "--resume", *more)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "needs a GPU" in refused(*train())
    monkeypatch.setenv("FAILS", "2")
    assert "refused its settings" in refused(*train("--device", "cpu"))
    (books / "dev.jsonl.xz").unlink()
    assert "lacks train-*.jsonl.xz or dev.jsonl.xz" in refused(*train("--device", "cpu"))
    monkeypatch.setenv("SCALE", "full")
    assert "needs a GPU" in refused(*train("--device", "cpu"))
    (books / "evidence.py").unlink()
    assert "not installed from a checkout" in refused(*train())
