"""Loading a model for a command: what is refused, and what --help names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from remamba import CompressionConfig, InputError, Reader, ReMambaForCausalLM, cli
from remamba.commands.model_options import ModelOptions
from remamba.methods.base import Method
from remamba.methods.decimate import Decimate
from remamba.methods.remamba import ReMamba
from remamba.methods.scale import Scale
from remamba.methods.shorten import Last
from remamba.train.recipes import recipe_compression
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


def test_a_recipe_gives_the_settings_and_what_stands_beside_it_counts() -> None:
    reader = Reader(
        tiny_model(compression=CompressionConfig(length=0.5, num_kept=3)), tiny_tokenizer()
    )
    sentences = ModelOptions(recipe="sentences").chosen(reader)
    assert sentences == ReMamba(CompressionConfig(**recipe_compression("sentences")))
    changed = ModelOptions(recipe="sentences", keep_ratio=0.1).chosen(reader)
    assert changed == ReMamba(sentences.compression.replace(keep_ratio=0.1))
    last = ModelOptions(recipe="paper", method="last+remamba", method_tokens=9).chosen(reader)
    paper = ReMamba(CompressionConfig(**recipe_compression("paper")))
    assert last == Last(9, reader=paper)
    for options, said in (
        ({"recipe": "papper"}, "recipe 'papper' is unknown"),
        ({"method": "plain", "num_kept": 4}, "--num-kept has no effect with the method plain"),
        ({"method": "plain", "recipe": "paper"}, "--recipe has no effect with the method plain"),
        ({"method": "plain", "method_tokens": 4}, "--method-tokens 4 has no effect"),
        ({"method": "bm25", "candidates": 4}, "--candidates 4 has no effect with the method bm25"),
        ({"method": "chunks", "method_tokens": 31}, "chunks with tokens = 31: give a number from"),
        ({"method": "chunks", "candidates": 0}, "chunks with candidates = 0: give a number from"),
        ({"selector": "none"}, "selector='none' is now the method 'plain'"),
        ({"method": "truncate"}, "now called last"),
    ):
        with pytest.raises(InputError, match=said):
            ModelOptions(**options).chosen(reader)


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"method": "scale", "factor": 0.5}, Scale(factor=0.5)),
        ({"method": "scale", "factor": 0.5, "factor_of": "A"}, Scale(factor=0.5, of="A")),
        ({"method": "last+scale", "factor": 2.0}, Last(reader=Scale(factor=2.0))),
        (
            {"method": "last+scale", "factor": 2.0, "method_tokens": 9},
            Last(9, reader=Scale(factor=2.0)),
        ),
        (
            {"method": "decimate", "method_tokens": 30, "decimate_layers": (1, 0)},
            Decimate(30, layers=(0, 1)),
        ),
    ],
    ids=str,
)
def test_options_of_methods_with_a_layer_rule(options: dict[str, Any], method: Method) -> None:
    reader = Reader(tiny_model(), tiny_tokenizer())
    assert ModelOptions(**options).chosen(reader) == method
