"""`remamba generate`: what is streamed, and what --json tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remamba import cli
from tests.tiny import (
    PAPER,
    TEXT,
    Run,
    paper_kept,
    tiny_tokenizer,
)


def test_generate_streams_what_json_tells(folder: Path, remamba: Run, capsys: Any) -> None:
    argv = ["generate", "--model", folder / "paper", "--prompt", TEXT, "--temperature", "1",
            "--top-k", "40", "--seed", "3", "--max-new-tokens", "30"]  # fmt: skip
    found = remamba(*argv, "--json")
    out = remamba(*argv)
    assert out == found["text"] + ("" if found["text"].endswith("\n") else "\n")
    assert found["prompt_tokens"] == len(tiny_tokenizer()(TEXT)["input_ids"])
    assert found["method"]["compression"] == PAPER.to_dict()
    assert len(found["kept"]) == paper_kept(found["prompt_tokens"])
    assert found["text"] == tiny_tokenizer().decode(found["token_ids"], skip_special_tokens=True)
    assert cli.main([*map(str, argv)]) == 0
    assert "tokens/s" in capsys.readouterr().err


def test_generate_from_a_file(folder: Path, tmp_path: Path, remamba: Run) -> None:
    (tmp_path / "prompt.txt").write_text("Tom Hill lives", encoding="utf-8")
    options = ["--model", folder / "paper", "--max-new-tokens", 5]
    assert remamba("generate", "--prompt-file", tmp_path / "prompt.txt", *options) == remamba(
        "generate", "--prompt", "Tom Hill lives", *options
    )


@pytest.mark.parametrize("model", ["whole", "before"])
def test_generate_with_a_model_for_documents(
    folder: Path, model: str, remamba: Run, capsys: Any
) -> None:
    """A whole-document span has no meaning in a prompt of one part: plain Mamba, and it says so."""
    argv = ["generate", "--model", str(folder / model), "--prompt", "Tom", "--json"]
    assert cli.main(argv) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["method"] == {"name": "plain"}
    assert "plain Mamba reads it" in said.err
    explicit = remamba(*argv, "--placement", "replace", "--length", 1)
    assert explicit["method"]["compression"]["length"] == 1.0


def test_generate_refuses(folder: Path, refused: Run) -> None:
    model = ["--model", folder / "before"]
    assert "either --prompt TEXT or --prompt-file FILE" in refused("generate", *model)
    assert "the prompt is empty" in refused("generate", *model, "--prompt", "")
    assert "needs a question" in refused(
        "generate", *model, "--prompt", "Tom", "--placement", "before_question"
    )
    assert "temperature" in refused("generate", *model, "--prompt", "T", "--temperature", "-1")
