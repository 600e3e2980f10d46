"""The miniatures: their questions, and rows at the paper's settings."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers import Tokenizer

from lab.asked.conditions import Condition
from lab.asked.tasks import read_documents
from lab.commands.data_planted import Args as Planted
from lab.commands.reproduce import Name
from lab.paper.miniature_report import row_table
from lab.paper.miniatures import (
    CONSTANT,
    DATA,
    EXACT,
    LENGTHS,
    MINIATURES,
    ROLES,
    TASKS,
    Asked,
    Miniature,
    choose_models,
    plan_conditions,
    plan_rows,
)
from lab.paper.rows import RECIPES
from lab.planted.language import language
from lab.planted.words import FIRST_NAMES, SURNAMES
from remamba.cli import _parse
from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.passages import Passages
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.text import encode, load_tokenizer
from tests.tiny import PAPER, WHOLE

ROOT = Path(__file__).parents[3]
ASSETS = ROOT / "remamba" / "assets"
MANIFEST = json.loads((DATA.parent / "miniature.manifest.json").read_text())
PLAIN = Plain()


Own = Mapping[str, CompressionConfig | Plain]


def methods_of(own: Own) -> dict[str, Method]:
    return {role: one if isinstance(one, Plain) else ReMamba(one) for role, one in own.items()}


def plan(miniature: Miniature, own: Own) -> Any:
    """The rows of a miniature where the models have these settings."""
    return plan_rows(miniature, methods_of(own))


def test_bm25_over_paragraphs_answers_retrieval_without_a_model() -> None:
    documents, _ = read_documents([DATA], LENGTHS)
    tokenizer = load_tokenizer("remamba-tiny", vocab_size=1 << 20)
    right = []
    for document in documents:
        if document.task == "retrieval":
            _, offsets = encode(tokenizer, document.text, begins=False)
            passages = Passages(document.text, offsets, len(offsets))
            paragraphs = [document.text[unit.start : unit.stop] for unit in passages.units]
            assert paragraphs == document.text.split("\n\n")
            for question in document.questions:
                (best,) = passages.ranking(question.text)[:1]
                found = re.findall(r"Paragraph \d+", paragraphs[best])[-1:]
                right.append(found == question.answers)
    assert right == [True] * 230  # as report.md, docs/EVIDENCE.md and docs/EVALUATION.md say


def test_the_closed_world_has_the_sizes_that_are_told() -> None:
    kinds = language("train").attributes
    words = {v for kind in kinds for v in kind.values if not v.isdigit()}
    assert (len(kinds), len(FIRST_NAMES), len(SURNAMES), len(words)) == (13, 154, 210, 404)
    tokenizer = Tokenizer.from_file(str(ASSETS / "remamba-tiny" / "tokenizer.json"))
    for word in (*FIRST_NAMES, *SURNAMES, *words):
        assert len(tokenizer.encode(f" {word}").ids) == 1, word


def test_the_questions_are_what_is_said_of_them() -> None:
    documents, _ = read_documents([DATA], LENGTHS)
    counts = Counter((document.task, document.length) for document in documents)
    assert counts == {(task, length): 12 for task in TASKS for length in LENGTHS}
    assert all(0.85 <= d.tokens / d.length <= 1.15 for d in documents)
    asked = Counter((d.task, d.length) for d in documents for _ in d.questions)
    assert all(asked[task, length] == 4 * 12 for task in TASKS for length in (1000, 2000))
    assert min(asked.values()) >= 16 and sum(asked.values()) == MANIFEST["questions"]
    assert all("-test-" in document.id for document in documents)
    assert {d.metric for d in documents if d.task in EXACT} == {"exact"}
    for document in documents:
        for question in document.questions:
            assert question.evidence and question.answers
            if document.task == "facts":
                (start, stop), *_ = question.evidence
                assert question.answers[0] in document.text[start:stop]


def test_the_file_is_small_and_that_of_its_manifest() -> None:
    assert DATA.stat().st_size < 500_000
    rows = lzma.decompress(DATA.read_bytes())
    assert hashlib.sha256(rows).hexdigest() == MANIFEST["sha256 of the rows"]
    assert set(MANIFEST["sha256 of the inputs"]) == {"dev.jsonl.xz", "tokenizer.json"}
    assert "public domain" in (DATA.parent / "NOTICE.md").read_text()


def test_every_item_has_its_miniature() -> None:
    assert set(MINIATURES) == set(RECIPES) == set(get_args(Name)) - {"fig6"}
    for name, miniature in MINIATURES.items():
        assert miniature.title.startswith(RECIPES[name].title.split(":")[0].split(",")[0])
        assert set(miniature.roles) <= set(ROLES)
        assert set(miniature.branches) <= set(miniature.roles)


@pytest.mark.parametrize("name", MINIATURES)
def test_rows_have_the_papers_settings(name: str) -> None:
    """A row's settings are those of its counterpart, but where it is asked at the model's own."""
    counterparts = {
        setting.name.rpartition("-")[0] if RECIPES[name].shape == "lengths" else setting.name: (
            setting.compression
        )
        for setting in RECIPES[name].settings
    }
    for row in MINIATURES[name].rows:
        if name == "fig7":  # the paper's map is of one model, and has no row
            continue
        settings: dict[str, Any] = counterparts[str(row.paper)]
        if row.changes is None:
            assert settings == {"method": "plain"}
        elif row.role in ("paper", "middle", "append"):
            assert settings.items() <= row.changes.items()
        elif row.role in ("random", "fixed", "multiplicative"):
            assert row.changes.items() <= settings.items()
        else:
            assert row.changes == {} or row.changes == {"adaption": "selective"}


def names(name: str, **own: CompressionConfig) -> list[str]:
    """Of what is asked, the best constant answers apart, which every item has once."""
    models = {role.replace("_", "-"): settings for role, settings in own.items()}
    asked, _ = plan(MINIATURES[name], models)
    conditions = plan_conditions(MINIATURES[name], asked, methods_of(models))
    found = [condition.name for condition in conditions]
    assert found.count(CONSTANT) == 1
    return [name for name in found if name != CONSTANT]


def test_the_plan_of_each_item() -> None:
    tables = [names(name, two_stage=WHOLE) for name in ("table1", "table2", "table3")]
    assert tables == [["stage1", "two-stage"]] * 3
    models = {"two_stage": WHOLE, "plain": PLAIN, "base": PLAIN, "paper": PAPER}
    tables = [names(name, **models) for name in ("table1", "table2", "table3")]
    assert tables == [["base", "plain", "two-stage", "paper"]] * 3
    assert names("table4", two_stage=WHOLE) == [
        "two-stage", "s0.0", "s0.1", "s0.2", "s0.3", "s0.4", "append",
    ]  # fmt: skip
    assert names("fig1", base=PLAIN) == ["base"]
    for name in ("fig3", "fig4"):
        assert names(name, two_stage=WHOLE) == ["stage1", "two-stage"]
        assert names(name, **models) == ["plain", "two-stage", "paper"]
    ablations = ["stage1", "two-stage", "random", "fixed"]
    assert names("fig5", two_stage=WHOLE) == [*ablations, "selective"]
    selective = WHOLE.replace(adaption="selective")
    assert names("fig5", two_stage=selective) == [*ablations, "multiplicative"]
    cells = names("fig7", two_stage=WHOLE)
    assert cells[:2] == ["two-stage", "stage1"] and len(cells) == 2 + 4 * 3
    grid = {setting.name for setting in RECIPES["fig7"].settings}
    assert {cell for cell in cells[2:] if not cell.startswith("p1-")} <= grid
    assert {MINIATURES[name].tasks for name in ("table2", "fig4")} == {EXACT}


def test_rows_without_a_model_of_their_own() -> None:
    """Either the two-stage model answers at other settings, or the row is left out."""
    asked, missing = plan(MINIATURES["table1"], {"two-stage": WHOLE})
    assert [one.is_stand_in for one in asked] == [True, False]
    assert asked[0].condition.answers_by == "two-stage" and asked[0].condition.compression is None
    assert asked[0].condition.words.startswith("stage 1 of the same weights")
    assert [line.split()[0] for line in missing] == ["base", "paper"]
    assert all(line.count("\n") == 0 and "is left out" in line for line in missing)
    with pytest.raises(InputError, match="no row can be asked: base is left out"):
        plan(MINIATURES["fig1"], {})
    (_, _, drawn, *_), _ = plan(MINIATURES["fig5"], {"two-stage": WHOLE})
    assert drawn.is_stand_in and drawn.condition.compression == WHOLE.replace(selector="random")
    (_, first, *_), _ = plan(MINIATURES["table4"], {"two-stage": WHOLE})
    settings = first.condition.compression
    assert settings is not None and settings.num_kept is None
    assert (settings.start, settings.length, settings.keep_ratio) == (0.0, 0.18, 0.009)
    assert settings.adaption == WHOLE.adaption


def test_a_model_of_ones_own_is_asked_in_its_form() -> None:
    trained = WHOLE.replace(selector="random", num_kept=3)
    (_, _, row, *_), _ = plan(MINIATURES["fig5"], {"two-stage": WHOLE, "random": trained})
    assert not row.is_stand_in and row.condition.answers_by == "random"
    assert row.condition.compression == trained
    with pytest.raises(InputError, match="has selector topk, and not random"):
        plan(MINIATURES["fig5"], {"two-stage": WHOLE, "random": WHOLE})
    with pytest.raises(InputError, match="compresses nothing"):
        plan(MINIATURES["table1"], {"two-stage": PLAIN})
    asked, _ = plan(MINIATURES["table2"], {"two-stage": WHOLE, "paper": PAPER})
    settings = asked[-1].condition.compression
    assert settings is not None and (settings.length, settings.keep_ratio) == (0.2, 0.05)


def test_which_model_plays_a_role() -> None:
    table1, table3 = MINIATURES["table1"], MINIATURES["table3"]
    some = ["remamba-tiny", "remamba-tiny-base"]
    every = [*some, "remamba-tiny-plain", "remamba-tiny-mamba2", "remamba-tiny-mamba2-plain"]

    def chosen(miniature: Any, given: dict[str, str], embedded: list[str]) -> dict[str, str]:
        return choose_models(miniature, given, embedded, "remamba-tiny")

    assert chosen(table1, {}, some) == {"two-stage": some[0], "base": some[1]}
    assert chosen(table1, {}, every)["plain"] == "remamba-tiny-plain"
    assert chosen(table3, {"two-stage": "mine"}, some) == {"two-stage": "mine"}
    with pytest.raises(InputError, match="no mamba2 model is in the package"):
        chosen(table3, {"base": "mine"}, some)
    assert chosen(table3, {}, every) == {"two-stage": every[3], "plain": every[4]}
    # beside a model of one's own, what was trained on other data says nothing
    assert chosen(table1, {"two-stage": "mine"}, every) == {"two-stage": "mine"}
    assert chosen(table1, {"plain": "mine"}, every)["plain"] == "mine"
    assert chosen(MINIATURES["fig1"], {}, some) == {"base": "remamba-tiny-base"}
    assert chosen(MINIATURES["fig1"], {}, some[:1]) == {}
    with pytest.raises(InputError, match="no row is a random here"):
        chosen(table1, {"random": "mine"}, some)


# Stands in for python: writes a row of what is asked for, and packs for real.
STUB = """
import json, os, sys

words = sys.argv[1:]
if words[0] == "-":
    os.execv(sys.executable, [sys.executable, *words])
with open(os.environ["RECIPE_LOG"], "a") as file:
    file.write(json.dumps(words) + "\\n")
with open(words[words.index("--output") + 1], "w") as file:
    file.write(json.dumps({"id": len(words), "questions": [1, 2]}) + "\\n")
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_recipe_of_the_questions(tmp_path: Path) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{tmp_path}/stub.py" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "BOOKS": str(tmp_path), "OUT": str(tmp_path / "out")}
    environment |= {"PYTHON": str(stub), "RECIPE_LOG": str(tmp_path / "log")}

    def run() -> subprocess.CompletedProcess:
        words = ["bash", str(ROOT / "recipes" / "miniature.sh")]
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    done = run()
    assert done.returncode == 2 and "holds no dev.jsonl.xz" in done.stderr
    (tmp_path / "dev.jsonl.xz").touch()
    done = run()
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    built = [_parse(Planted, "data build planted", words[5:]) for words in made]
    assert {(one.tasks[0], one.seed) for one in built} == {(t, n) for t in TASKS for n in LENGTHS}
    for one in built:
        assert (one.split, one.documents, one.questions) == ("test", 12, 4)
        assert one.tokens == (one.seed * 9 // 10, one.seed * 11 // 10)
    told = json.loads((tmp_path / "out" / "miniature.manifest.json").read_text())
    assert (told["rows"], told["questions"], set(told)) == (20, 40, set(MANIFEST))
    rows = lzma.decompress((tmp_path / "out" / DATA.name).read_bytes())
    assert hashlib.sha256(rows).hexdigest() == told["sha256 of the rows"]


def entry(score: float, low: float, high: float) -> dict[str, Any]:
    cell = {"score": score, "interval": (low, high), "n": 4, "lengths": {}}
    return {"average": score, "interval": (low, high), "datasets": {"facts": cell}}


def test_a_row_that_may_be_chance_is_marked() -> None:
    """By hand: the constant is worth 20; one row's interval holds that, the other's does not."""
    rows = MINIATURES["table1"].rows
    asked = [
        Asked(row, Condition(row.name, row.words, row.role), False)
        for row in rows
        if row.name in ("plain", "two-stage")
    ]
    shown = {
        "plain": entry(22.0, 20.0, 25.0),
        "two-stage": entry(40.0, 20.1, 60.0),
        "constant": entry(20.0, 10.0, 30.0),
    }
    said = row_table(asked, shown)
    lines = [line for line in said.splitlines() if line.startswith("|")][2:]
    assert [line.count("\\*") for line in lines] == [2, 0, 0]
    assert "best constant answer" in lines[2] and "20.0" in lines[2]
    assert said.endswith("always answer the same.")
    shown["plain"] = entry(22.0, 20.1, 25.0)
    assert "always answer" not in row_table(asked, shown)
