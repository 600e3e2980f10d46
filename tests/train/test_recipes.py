"""The recipes: the table in docs/PAPER.md is what they do, and what is given beside them counts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from remamba.cli import _parse, main
from remamba.commands import train
from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.options import field_docs
from remamba.train.config import GROUPS, RecipeName, TrainArgs, check_resumable
from remamba.train.recipes import FORM, NAMES, RECIPES, recipe_compression
from remamba.train.schedule import CompressionSchedule

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
    assert {name for recipe in RECIPES.values() for name in recipe} <= set(rows)
    columns = (
        TrainArgs(**GIVEN, recipe="paper"),
        TrainArgs(**GIVEN, recipe="released"),
        TrainArgs(**GIVEN, recipe="released", method="mamba"),
        TrainArgs(**GIVEN, recipe="sentences"),
        TrainArgs(**GIVEN),
    )
    for option, cells in rows.items():
        assert cells == [spell(getattr(args, option)) for args in columns], option


# Each by hand. Of the paper, as its text has it: what it says of training, and of the evaluation.
PAPER = {
    "parameters": "lora", "lora_rank": 32,
    "lora_targets": ("in_proj", "out_proj", "embeddings", "lm_head"),
    "train_in_full": ("dt", "theta", "compressor"),
    "max_length": 6000, "start": 0.0, "length": (0.1, 0.3), "keep_ratio": (0.05, 0.2),
    "selector": "topk", "placement": "replace", "adaption": "selective",
    "eval_length": 0.18, "eval_keep_ratio": 0.009, "score_loss": 0.0, "document_loss": 0.0,
}  # fmt: skip
# Of the authors' code: Remambahf/Finetune.py.
RELEASED = {
    "parameters": "lora", "lora_rank": 32, "lora_alpha": 8, "lora_dropout": 0.0,
    "learning_rate": 2e-5, "weight_decay": 0.1, "betas": (0.9, 0.999), "lr_scheduler": "cosine",
    "warmup_steps": 0, "max_grad_norm": 1.0, "batch_size": 8 * 16, "max_length": 6000,
    "long_rows": "skip", "length": (0.1, 0.3), "keep_ratio": (0.05, 0.2),
    "short_prompt": (1600, 0.1), "keep_last": 1500, "seed": 42,
}  # fmt: skip


@pytest.mark.parametrize("name, expected", [("paper", PAPER), ("released", RELEASED)])
def test_a_recipe_is_what_its_source_says(name: str, expected: dict[str, Any]) -> None:
    args = TrainArgs(**GIVEN, recipe=name)
    assert {option: getattr(args, option) for option in expected} == expected


def test_sentences_is_the_form_that_wins() -> None:
    """As the embedded model has it, and as the evidence trains it in its last stage."""
    config = json.loads((ROOT / "remamba/assets/remamba-tiny/config.json").read_text())
    settings = recipe_compression("sentences")
    assert settings.items() <= config["compression"].items()
    assert set(settings) == {*FORM, "length"}
    stages = "branches.branch_stages('sentences', branches.SCALES['full'])"
    program = f"import branches, json; print(json.dumps({stages}[-1][2]))"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "recipes", capture_output=True, text=True
    )
    stage = json.loads(told.stdout)
    steps = stage.pop("max_steps")
    args = TrainArgs(**GIVEN, recipe="sentences").to_dict()
    assert steps == 400 and {name: args[name] for name in stage} == stage
    # the branch and the recipe set nothing beside it
    plain = TrainArgs(**GIVEN).to_dict()
    defaults = {"start": 0.0, "selector": "topk", "placement": "replace"}
    changed = {name: value for name, value in args.items() if value != plain[name]}
    assert changed == {
        **{n: v for n, v in stage.items() if v != plain[n]},
        **defaults,
        "recipe": "sentences",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_also_settings_of_a_model(name: str) -> None:
    settings = recipe_compression(name)
    assert ("keep_ratio" in settings) is not ("num_kept" in settings)
    base = CompressionConfig(start=0.3, adaption="none", selector="random")
    schedule = CompressionSchedule.from_args(TrainArgs(**GIVEN, recipe=name), base, 10)
    saved = schedule.for_evaluation().to_dict()
    assert {key: saved[key] for key in settings} == settings
    missing = set(saved) - set(settings)
    assert missing <= {"keep_ratio", "num_kept"}


def test_the_paper_trains_both_methods_alike() -> None:
    remamba, mamba = (
        TrainArgs(**GIVEN, recipe="paper", method=method) for method in ("remamba", "mamba")
    )
    different = {
        field.name
        for field in dataclasses.fields(TrainArgs)
        if getattr(remamba, field.name) != getattr(mamba, field.name)
    }
    assert different == {
        "method", "start", "length", "keep_ratio", "selector", "placement", "adaption",
        "window", "value", "importance", "eval_length", "eval_keep_ratio",
    }  # fmt: skip


def read(*words: str) -> TrainArgs:
    """The options of a command line."""
    argv = ["--base", "b", "--data", "d.jsonl", "--output", "o", *words]
    choice = _parse(train.Choice, "train", argv, is_part=True)
    return train.train_args(_parse(train.args_type(choice), "train", argv))


@pytest.mark.parametrize(
    "words, options",
    [
        ([], {}),
        (["--recipe", "paper"], {"recipe": "paper"}),
        (["--recipe=released", "--method", "mamba", "--learning-rate", "1e-3", "--max-steps", "7"],
         {"recipe": "released", "method": "mamba", "learning_rate": 1e-3, "max_steps": 7}),
        (["--recipe", "sentences", "--no-check-gradients", "--selector", "random", "--json"],
         {"recipe": "sentences", "check_gradients": False, "selector": "random", "json": True}),
        (["--keep-ratio", ".1", ".2", "--recipe", "sentences"],
         {"recipe": "sentences", "keep_ratio": (0.1, 0.2)}),
        (["--recipe", "paper", "--num-kept", "9"], {"recipe": "paper", "num_kept": 9}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_python_and_the_command_line_make_the_same(words: list[str], options: Any) -> None:
    args = TrainArgs(**GIVEN, **options)
    assert read(*words) == args
    assert dataclasses.replace(args) == args
    assert {name: getattr(args, name) for name in options} == options


def test_a_share_takes_the_place_of_a_number_and_the_other_way_round() -> None:
    assert TrainArgs(**GIVEN, recipe="sentences", keep_ratio=(0.1, 0.2)).settings["window"] == 16
    assert "num_kept" not in TrainArgs(**GIVEN, recipe="sentences", eval_keep_ratio=0.1).settings
    args = TrainArgs(**GIVEN, recipe="paper", num_kept=9)
    assert (args.keep_ratio, args.eval_keep_ratio, args.eval_length) == (None, None, 0.18)
    with pytest.raises(InputError, match=r"--keep-ratio 0\.1 0\.2 speaks of a share"):
        TrainArgs(**GIVEN, num_kept=9, keep_ratio=(0.1, 0.2))


def test_a_run_by_recipe_may_be_resumed_by_the_same_options_in_full() -> None:
    given = TrainArgs(**GIVEN, recipe="released", learning_rate=1e-3)
    assert (given.learning_rate, given.lr_scheduler) == (1e-3, "cosine")
    spelt = {f.name: getattr(given, f.name) for f in dataclasses.fields(TrainArgs)}
    check_resumable(TrainArgs(**{**spelt, "recipe": "none"}), given.to_dict())


def test_every_setting_of_a_model_is_an_option_with_its_own_help() -> None:
    """None is forgotten, and none is told otherwise than where it is defined."""
    docs = field_docs(CompressionConfig)
    names = {field.name for field in dataclasses.fields(CompressionConfig)}
    assert set(docs) == names
    assert names <= {field.name for field in dataclasses.fields(TrainArgs)}
    options = {"window": 3, "adaption": "exact", "start": 0.25, "num_kept": 5}
    words = [word for name, value in options.items() for word in (spell_flag(name), str(value))]
    assert read(*words).settings == options
    with pytest.raises(InputError, match="selector='best' is unknown"):
        TrainArgs(**GIVEN, selector="best")


def spell_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_help_stands_in_groups_and_begins_with_the_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "sentences", "--help"])
    out = capsys.readouterr().out
    flags = re.findall(r"^[|│ ]{0,2}(--[a-z][\w-]+)", out, re.MULTILINE)
    assert flags[0] == "--recipe"
    wanted = {spell_flag(field.name) for field in dataclasses.fields(TrainArgs)}
    wanted ^= {"--check-gradients", "--no-check-gradients"}
    wanted ^= {"--group-by-length", "--no-group-by-length"}
    assert sorted(flags) == sorted(wanted)
    for group in GROUPS:
        assert f"{group.__name__.lower()} options" in out
    said = " ".join(re.sub("[|│]", " ", out).split())
    assert "--num-kept N Number of positions kept, in place of a share [K]. (default: 128)" in said
    assert "of a step. (default: the model's own)" in said


def test_recipes_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(get_args(RecipeName)) == {"none", *NAMES}
    for name in ("ours", "none"):
        with pytest.raises(InputError, match="recipes are sentences, paper, released"):
            recipe_compression(name)
    with pytest.raises(InputError, match="--recipe = 'ours' must be one of none, sentences, paper"):
        TrainArgs(**GIVEN, recipe="ours")
    with pytest.raises(InputError, match="'learning_rat' is no option"):
        TrainArgs(**GIVEN, learning_rat=1)
    with pytest.raises(InputError, match="--output is missing"):
        TrainArgs(base="b", data="d")
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
