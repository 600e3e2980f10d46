"""The recipe of the embedded model: its commands exist, and what is there already is skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import make_base  # noqa: E402

BUILD = ["data", "build", "planted"]
RECIPE = EXAMPLES.parent / "recipes" / "remamba_tiny.sh"
CLI = ["-m", "remamba.cli"]
STUB = """
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
if words[0] == "-":  # the copy in bfloat16 is really made
    os.execv(sys.executable, [sys.executable, *words])
with open(os.environ["RECIPE_LOG"], "a") as file:
    file.write(json.dumps(words) + "\\n")
output = Path(words[words.index("--output") + 1])
if output.suffix == ".jsonl":
    output.parent.mkdir(exist_ok=True)
    output.touch()
else:
    import numpy
    from safetensors.numpy import save_file

    output.mkdir(parents=True, exist_ok=True)
    save_file({"w": numpy.ones(2, "float32")}, output / "model.safetensors")
    (output / "config.json").write_text('{"dtype": "float32", "model_type": "remamba"}')
    (output / "train.json").write_text(json.dumps({"status": "finished"}, indent=2))
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_recipe_runs_commands_that_exist_and_skips_what_is_done(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from remamba.cli import _parse
    from remamba.commands.data_planted import Args as Planted
    from remamba.commands.eval_planted import Args as EvalPlanted
    from remamba.planted.suite import Options
    from remamba.train.config import TrainArgs

    subprocess.run(["bash", "-n", str(RECIPE)], check=True)
    (tmp_path / "train-00.jsonl.xz").touch()
    (tmp_path / "stub.py").write_text(STUB)
    stub, log, out = tmp_path / "python", tmp_path / "log", tmp_path / "out"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/stub.py" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "BOOKS": str(tmp_path), "OUT": str(out), "PYTHON": str(stub)}
    environment |= {"WORKERS": "3", "RECIPE_LOG": str(log)}

    def run() -> str:
        command = ["bash", str(RECIPE)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    printed = run().split()
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    made = {}
    for words in commands:
        if words[2:5] == BUILD:
            args = _parse(Planted, "data build planted", words[5:])
            assert args.tokenizer == out / "base" and args.workers == 3
            Options(kinds=args.kinds, tokens=args.tokens)
        elif Path(words[0]).name == "make_base.py":
            make_base.build_parser().parse_args(words[1:])
        else:
            assert words[:3] == ["-m", "remamba.cli", "train"]
            train = _parse(TrainArgs, "train", words[3:])
            assert all((out / "data" / Path(name).name).is_file() for name in train.data)
            assert Path(train.base).name in ["base", *made]  # made before
            made[Path(train.output).name] = train
    assert len(commands) == 1 + 7 + 10
    own = ["read-out", "select", "middle", "long"]
    assert list(made) == ["recall", "names", *own, *[f"plain-{name}" for name in own]]

    # the plain branch has the same data, order and steps
    free = ("method", "base", "output", "keep_ratio", "keep_ratio_schedule", "adaption")
    free += ("eval_keep_ratio", "stage1_loss", "score_loss")
    for name in own:
        ours, plain = made[name].to_dict(), made[f"plain-{name}"].to_dict()
        assert {key for key in ours if ours[key] != plain[key]} <= set(free)
        assert (ours["method"], plain["method"]) == ("remamba", "mamba")
        assert ours["keep_ratio_schedule"] == "anneal" and plain["keep_ratio"] is None

    assert load_file(out / "remamba-tiny" / "model.safetensors")["w"].dtype == torch.bfloat16
    config = json.loads((out / "remamba-tiny" / "config.json").read_text())
    assert config == {"dtype": "bfloat16", "model_type": "remamba"}
    end = printed.index("&&")
    build, asking = printed[1:end], printed[end + 2 :]
    built = _parse(Planted, "data build planted", build[5:])
    assert [*build[:5], *asking[:4]] == [*CLI, *BUILD, *CLI, "eval", "planted"]
    asked = _parse(EvalPlanted, "eval planted", asking[4:])
    assert asked.data == (built.output,)
    assert (built.tokenizer, Path(asked.plain)) == (out / "remamba-tiny", out / "plain-long")

    (out / "long" / "train.json").write_text('{"status": "running"}')  # cut off; the rest is there
    run()
    lines = log.read_text().splitlines()
    assert len(lines) == len(commands) + 1
    again = json.loads(lines[-1])
    assert again[-1] == "--overwrite" and _parse(TrainArgs, "train", again[3:]).overwrite
