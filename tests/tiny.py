"""Tiny models with a tokenizer: random weights, byte-level BPE, nothing downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from remamba import CompressionConfig, ReMambaConfig, ReMambaForCausalLM

END = "<|endoftext|>"
TEXT = (
    "Tom Hill lives in Paris. Helen Archer plays the dulcimer, and the café is closed. "
    "Who lives in Lisbon? The mayor of Zürich; naïve façades, 東京 and 🙂 too.\n"
)
QUESTION = "Who lives in Lisbon?"
WHOLE = CompressionConfig(length=1.0, num_kept=6, adaption="multiplicative")
BEFORE = CompressionConfig(length=1.0, num_kept=6, placement="before_question")
PAPER = CompressionConfig(length=0.5, keep_ratio=0.1)
Run = Callable[..., Any]


def byte_level_bpe(texts: list[str], vocab_size: int, end: str) -> Any:
    """A fast tokenizer learnt from `texts`, with `end` as its only special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


@cache
def tiny_tokenizer() -> Any:
    """Byte-level BPE with whole characters, halves of characters, and words."""
    return byte_level_bpe([TEXT] * 3, 340, END)


def tiny_model(backbone: str = "mamba2", seed: int = 3, **changes: Any) -> ReMambaForCausalLM:
    """Two layers of random weights that write varied text, Theta and conv bias away from zero."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "state_size": 8,
        "head_dim": 12,
        "n_groups": 2,
        "chunk_size": 16,
        "compressor_init": "tied",
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    model = ReMambaForCausalLM(ReMambaConfig(backbone_type=backbone, **{**settings, **changes}))
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.adaption.theta.normal_(std=0.3)
            block.mixer.conv1d.bias.normal_(std=0.3)
            block.mixer.out_proj.weight.mul_(6)
        model.lm_head.weight.normal_(std=0.7)
    return model.eval()


def save_tiny(directory: Path, **changes: Any) -> Path:
    """A model directory as the commands load it."""
    tiny_model(**changes).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def paper_kept(length: int) -> int:
    """K of the settings PAPER."""
    return math.ceil(0.1 * math.ceil(0.5 * length))


def ask(folder: Path, model: str, *more: object) -> list[object]:
    """The arguments of a short question about the document."""
    words = ["ask", "--model", folder / model, "--max-new-tokens", 6, *more]
    if "--memory" not in more:
        words += ["--document", folder / "doc.txt"]
    return words if "--question" in more else [*words, "--question", QUESTION]
