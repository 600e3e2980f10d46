"""A tiny task, tokenizer and model for the tests of training: recall of facts, one token a word."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.tiny import byte_level_bpe

KEYS = [f"key{i}" for i in range(12)]
VALUES = [f"val{i}" for i in range(12)]
FILLER = [f"w{i}" for i in range(8)]


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer whose merges are learnt from the toy's own words."""
    words = KEYS + VALUES + FILLER + ["Paris", "paris", "Parish", "Where", "is", "the", "it"]
    return byte_level_bpe([f" {word} {word}." for word in words] * 4, 420, "<|end|>")


def document_row(generator: random.Random, facts: int = 3, questions: int = 2) -> dict[str, Any]:
    """A document of facts `key value` between filler, and questions about some of them."""
    keys = generator.sample(KEYS, facts)
    values = generator.sample(VALUES, facts)
    parts, asked = [], []
    for key, value in zip(keys, values, strict=True):
        fact = f" {key} {value}"
        parts.append(fact + "." + "".join(f" {w}" for w in generator.choices(FILLER, k=2)))
        asked.append({"question": f" {key}", "response": f" {value}", "evidence": fact})
    return {"document": "".join(parts), "questions": generator.sample(asked, questions)}


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_documents(path: Path, count: int = 40, seed: int = 0, **sizes: int) -> str:
    generator = random.Random(seed)
    return write_rows(path, [document_row(generator, **sizes) for _ in range(count)])


def save_base(path: Path, **changes: Any) -> str:
    """A tiny random Mamba-2 with its tokenizer, compressing whole documents."""
    import torch

    from remamba import ReMambaConfig, ReMambaForCausalLM

    tokenizer = make_tokenizer()
    settings = {
        "backbone_type": "mamba2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "head_dim": 16,
        "compression": {"length": 1.0, "keep_ratio": 0.3, "adaption": "multiplicative"},
        **changes,
    }
    torch.manual_seed(0)
    model = ReMambaForCausalLM(
        ReMambaConfig(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **settings,
        )
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
