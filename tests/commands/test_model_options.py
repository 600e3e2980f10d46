"""Loading a model for a command: what is refused, and what --help names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from remamba import ReMambaForCausalLM, cli
from tests.tiny import (
    QUESTION,
    WHOLE,
    Run,
    tiny_model,
    tiny_tokenizer,
)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no tokenizer", "holds no tokenizer.json"),
        ("broken tokenizer", "tokenizer.json cannot be read as a tokenizer (Model missing"),
        ("larger tokenizer", "the model's vocabulary 300; give the model's own tokenizer"),
        ("another architecture", "'gpt2' model, not a ReMamba"),
        ("truncated weights", "truncated or corrupt"),
        ("NaN in the weights", "not finite"),
    ],
)
def test_models_that_cannot_be_used(
    folder: Path, tmp_path: Path, refused: Run, damage: str, message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "whole", model)
    if damage == "no tokenizer":
        for file in model.glob("tokenizer*"):
            file.unlink()
    elif damage == "broken tokenizer":
        (model / "tokenizer.json").write_text("{}")
    elif damage == "larger tokenizer":
        shutil.rmtree(model)
        small = tiny_model(vocab_size=300, compression=WHOLE)
        small.save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
    elif damage == "another architecture":
        (model / "config.json").write_text('{"model_type": "gpt2"}')
    elif damage == "truncated weights":
        data = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    else:
        broken = ReMambaForCausalLM.from_pretrained(model)
        broken.backbone.norm_f.weight.data[3] = torch.nan
        broken.save_pretrained(model)
    said = refused("ask", "--model", model, "--document", folder / "doc.txt",
                   "--question", QUESTION)  # fmt: skip
    assert message in said


@pytest.mark.parametrize("command", ["read", "ask", "generate"])
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code in (0, None)
    out = capsys.readouterr().out
    for option in ("--model", "--device", "--dtype", "--length", "--selector", "--piece-length"):
        assert option in out
    assert f"remamba {command} " in out and "Example: remamba" in out
