"""A run that is killed goes on from its last whole checkpoint as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remamba.errors import InputError
from remamba.train.checkpoints import SEAL_FILE, WRITING, flaw, last_checkpoint
from remamba.train.config import TrainArgs
from remamba.train.run import train
from tests.train.toy import save_base, write_documents

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import json, os, signal, sys
from remamba.train import checkpoints, trainer
from remamba.train.config import TrainArgs
from remamba.train.run import train

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

point, step, args = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
if point == "writing":  # all is written but the seal
    plain = trainer.seal
    trainer.seal = lambda f, place: die() if place.name.endswith(f"-{step}") else plain(f, place)
else:  # in the middle of a step, gradients and all
    plain = trainer.ReMambaTrainer._clip_grad_norm
    def clip(self, model):
        return die() if self.state.global_step == step else plain(self, model)
    trainer.ReMambaTrainer._clip_grad_norm = clip
train(TrainArgs(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}))
"""


@pytest.fixture
def args(tmp_path: Path) -> TrainArgs:
    return TrainArgs(
        base=save_base(tmp_path / "base"), data=(write_documents(tmp_path / "d.jsonl", count=24),),
        output=str(tmp_path / "run"), device="cpu", max_steps=7, batch_size=4,
        questions_per_document=2, warmup_steps=2, learning_rate=3e-3, logging_steps=1,
        save_steps=2, selector="random", keep_ratio=(0.1, 0.9), length=(1.0, 1.0),
        save_total_limit=2,
    )  # fmt: skip


def run_until_killed(args: TrainArgs, point: str, step: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, str(step), json.dumps(args.to_dict())],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_a_run_killed_twice_equals_one_that_was_not(args: TrainArgs, tmp_path: Path) -> None:
    whole = dataclasses.replace(args, output=str(tmp_path / "whole"))
    expected = train(whole)
    run = tmp_path / "run"
    run_until_killed(args, "writing", 4)
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-2"]
    assert (run / WRITING / "checkpoint-4" / "model.safetensors").is_file()
    said = run_until_killed(dataclasses.replace(args, resume=True), "step", 5)
    assert "resuming after step 2" in said
    assert not (run / WRITING / "checkpoint-4").exists()
    assert last_checkpoint(run) == run / "checkpoint-4"
    assert not (run / "model.safetensors").exists()
    # a line that was being written when the process died
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    summary = train(dataclasses.replace(args, resume=True))
    assert log_of(run) == log_of(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for name, weight in load_file(run / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    assert summary["tokens"] == expected["tokens"]
    assert [p.name for p in sorted(run.glob("checkpoint-*"))] == ["checkpoint-6", "checkpoint-7"]
    assert not any((run / WRITING).iterdir())


def test_a_torn_checkpoint_is_skipped_with_a_warning(
    args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(args, max_steps=4))
    run = tmp_path / "run"
    torn = run / "checkpoint-4"
    assert flaw(torn) is None
    shutil.copytree(torn, run / "kept")
    optimizer = torn / "optimizer.pt"
    with optimizer.open("r+b") as file:
        file.truncate(optimizer.stat().st_size - 1)
    assert last_checkpoint(run) == run / "checkpoint-2"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"warning: {torn} is torn (optimizer.pt has ")
    optimizer.unlink()
    assert flaw(torn) == "optimizer.pt is missing"
    (torn / SEAL_FILE).write_text("{")
    assert flaw(torn) == f"{SEAL_FILE} cannot be read"
    (torn / SEAL_FILE).unlink()
    assert flaw(torn) == f"{SEAL_FILE} is missing: it was never finished"
    # the run goes on from the one before, and writes the torn one anew
    train(dataclasses.replace(args, max_steps=4, resume=True))
    assert flaw(torn) is None
    for name, weight in load_file(torn / "model.safetensors").items():
        assert torch.equal(weight, load_file(run / "kept" / "model.safetensors")[name])


def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(
    args: TrainArgs, small_disk: Path
) -> None:
    """At each size of the disk another file is the one that does not fit."""
    whole = args.to_dict()["output"]
    train(args)
    args = dataclasses.replace(args, output=str(small_disk / "run"))
    sizes = [file.stat().st_size for file in Path(whole, "checkpoint-6").iterdir()]
    checkpoint = sum(size + 4095 & ~4095 for size in sizes)
    for share in (0.2, 0.4, 0.6, 0.8, 1.0, 1.5):
        room = f"size={round((share * checkpoint + 60_000) / 1024)}k"
        subprocess.run(["mount", "-o", f"remount,{room}", str(small_disk)], check=True)
        with pytest.raises(InputError, match=r"cannot be written: .*disk is full"):
            train(dataclasses.replace(args, overwrite=(small_disk / "run").exists()))
        assert not list((small_disk / "run" / WRITING).iterdir())
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    train(dataclasses.replace(args, resume=True))
    assert log_of(small_disk / "run") == log_of(Path(whole))


def test_what_a_killed_start_left_is_no_obstacle(args: TrainArgs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".train.json.0.part").write_text("{")
    assert train(dataclasses.replace(args, max_steps=1, save_steps=0))["steps"] == 1
    with pytest.raises(InputError, match="already holds a training run"):
        train(args)
