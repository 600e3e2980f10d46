"""The recipes: the table in docs/PAPER.md is what they do, and what is given beside them counts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remamba.cli import main
from remamba.errors import InputError
from remamba.train.config import TrainArgs, check_resumable
from remamba.train.recipes import RECIPES, args_type, recipe_type

ROOT = Path(__file__).parent.parent.parent
GIVEN: dict[str, Any] = {"base": "b", "data": ("d.jsonl",), "output": "o"}


def spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == ():
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table() -> dict[str, list[str]]:
    """Option -> its cells in docs/PAPER.md's table of the training."""
    text = (ROOT / "docs" / "PAPER.md").read_text(encoding="utf-8")
    lines = text.split("## Training, side by side")[1].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `--")
    ]
    return {row[0].strip("`-").replace("-", "_"): row[1:] for row in rows}


def test_the_table_is_what_the_recipes_do() -> None:
    rows = table()
    named = {name for recipe in RECIPES.values() for name in recipe}
    assert named <= set(rows)
    columns = (
        recipe_type("paper", "remamba")(**GIVEN),
        recipe_type("released", "remamba")(**GIVEN),
        recipe_type("released", "mamba")(**GIVEN),
        TrainArgs(**GIVEN),
    )
    for option, cells in rows.items():
        assert cells == [spell(getattr(args, option)) for args in columns], option


def test_the_paper_trains_both_methods_alike() -> None:
    remamba, mamba = (recipe_type("paper", method)(**GIVEN) for method in ("remamba", "mamba"))
    different = {
        field.name
        for field in dataclasses.fields(TrainArgs)
        if getattr(remamba, field.name) != getattr(mamba, field.name)
    }
    assert different == {
        "method", "start", "length", "keep_ratio", "selector", "placement", "adaption",
        "window", "value", "importance", "score_gradient", "eval_length", "eval_keep_ratio",
    }  # fmt: skip


def test_what_is_given_beside_a_recipe_counts() -> None:
    words = ["--recipe=released", "--method", "mamba", "--learning-rate", "1e-3"]
    chosen = args_type(words)
    assert chosen(**GIVEN).learning_rate == 5e-5
    given = chosen(**GIVEN, learning_rate=1e-3, max_steps=7)
    assert (given.learning_rate, given.lr_scheduler, given.recipe) == (1e-3, "constant", "released")
    assert isinstance(given, TrainArgs)
    assert args_type(["--learning-rate", "1"]) is TrainArgs
    # a run by recipe may be resumed by the same options in full
    spelt = {f.name: getattr(given, f.name) for f in dataclasses.fields(TrainArgs)}
    check_resumable(TrainArgs(**{**spelt, "recipe": "none"}), given.to_dict())


def test_recipes_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="recipe_type"):
        TrainArgs(**GIVEN, recipe="paper")
    with pytest.raises(InputError, match="paper, released"):
        recipe_type("ours", "remamba")
    command = ["train", "--base", "b", "--data", "d", "--output", "o", "--recipe", "ours"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "ours" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_smoke_recipe(tmp_path: Path) -> None:
    """From a random Mamba to scores, with a kill in the middle."""
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", ROOT / "recipes" / "smoke_cpu.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("remamba", "mamba"):
        assert (tmp_path / "out" / f"{name}-needle" / "scores.json").is_file()
