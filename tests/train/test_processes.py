"""Two processes over gloo on the CPU train as one does: under torchrun with DDP, and with FSDP2."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remamba import ReMambaForCausalLM
from remamba.train.config import TrainArgs
from remamba.train.run import train
from tests.train.toy import save_base, write_documents, write_rows

ROOT = Path(__file__).resolve().parents[2]
# a group that is still there when the interpreter ends can take the process down with it
COMMAND = """
import sys, torch
from remamba.cli import main
code = main(sys.argv[1:])
sys.exit("the group of processes was left behind" if torch.distributed.is_initialized() else code)
"""
# accelerate offers FSDP on GPUs only; here its state is told that gloo will do
SHARDED = (
    """
import os, sys
os.environ.update(
    ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
    FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Block",
    FSDP_RESHARD_AFTER_FORWARD="true",
)
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
plain, plugins = AcceleratorState.__init__, []
def begin(self, *args, fsdp_plugin=None, **options):
    plain(self, *args, fsdp_plugin=fsdp_plugin, **options)
    plugins.extend([] if fsdp_plugin is None else [fsdp_plugin])
    if plugins:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[0]
AcceleratorState.__init__ = begin
"""
    + COMMAND
)


@pytest.fixture
def args(tmp_path: Path) -> TrainArgs:
    """Documents, prompts with answers of unlike lengths, and texts."""
    rows: list[dict[str, Any]] = [
        {"prompt": " key1 is", "response": " val1" * (1 + i)} for i in range(8)
    ]
    rows += [{"text": " w1" * (2 + i)} for i in range(8)]
    files = (
        write_documents(tmp_path / "d.jsonl", count=8),
        write_rows(tmp_path / "rows.jsonl", rows),
    )
    return TrainArgs(
        base=save_base(tmp_path / "base"), data=files, output=str(tmp_path / "one"), device="cpu",
        max_steps=6, batch_size=4, questions_per_document=2, warmup_steps=2, learning_rate=3e-3,
        logging_steps=1, save_steps=4, score_loss=0.5, stage1_loss=1.0, keep_ratio=(0.1, 0.9),
        length=(1.0, 1.0), check_gradients=False,
    )  # fmt: skip


def launch(tmp_path: Path, program: str, args: TrainArgs, *more: str) -> str:
    """`remamba train` in two processes."""
    script = tmp_path / "program.py"
    script.write_text(program)
    options = [
        word
        for name in ("base", "device", "max_steps", "batch_size", "questions_per_document",
                     "warmup_steps", "learning_rate", "logging_steps", "save_steps", "score_loss",
                     "stage1_loss")
        for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))
    ]  # fmt: skip
    ranges = ["--keep-ratio", "0.1", "0.9", "--length", "1", "1", "--no-check-gradients"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), "train", *options, "--data", *args.data, *ranges,
         "--output", args.output, *more],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def log_of(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def check_alike(two: str, one: str) -> None:
    """The losses of every step, and the weights in the end, to float32's rounding."""
    logs = log_of(two), log_of(one)
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for theirs, ours in zip(*logs, strict=True):
        for name in ("loss", "answer_loss", "stage1_loss", "score_loss", "grad_norm", "accuracy"):
            assert (name in theirs) == (name in ours)
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-6), name
        assert theirs["tokens"] == ours["tokens"]
    expected = load_file(Path(one) / "model.safetensors")
    weights = load_file(Path(two) / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one(args: TrainArgs, tmp_path: Path) -> None:
    train(args)
    assert {"answer_loss", "score_loss"} <= {name for line in log_of(args.output) for name in line}
    two = dataclasses.replace(args, output=str(tmp_path / "two"))
    said = launch(tmp_path, COMMAND, two)
    assert said.count("6 steps, ") == 1  # the first process alone speaks
    check_alike(two.output, args.output)
    assert len(list((tmp_path / "two").glob("checkpoint-6/rng_state_*.pth"))) == 2


@pytest.mark.slow
def test_weights_in_shards_train_as_whole_ones_and_resume(args: TrainArgs, tmp_path: Path) -> None:
    train(args)
    two = dataclasses.replace(args, output=str(tmp_path / "two"), save_total_limit=2)
    launch(tmp_path, SHARDED, two, "--save-total-limit", "2")
    check_alike(two.output, args.output)
    # the last checkpoint is lost: the run goes on from the one before
    (tmp_path / "two" / "checkpoint-6" / "complete.json").unlink()
    (tmp_path / "two" / "model.safetensors").unlink()
    said = launch(tmp_path, SHARDED, two, "--save-total-limit", "2", "--resume")
    assert "resuming after step 4" in said
    check_alike(two.output, args.output)


def test_the_file_for_shards_is_what_the_test_runs_with() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "recipes" / "accelerate_fsdp2.yaml"))
    wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert [wrapped] == list(ReMambaForCausalLM._no_split_modules)
    assert f'FSDP_TRANSFORMER_CLS_TO_WRAP="{wrapped}"' in SHARDED
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    # every process reads the weights, and A, D and dt are not gathered in bfloat16
    assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False
    assert config.mixed_precision == "no"
