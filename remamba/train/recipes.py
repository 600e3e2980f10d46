"""Named recipes: the options of training as the paper, its authors' code, or our own evidence has
them. `TrainArgs(recipe=NAME, ...)` and `remamba train --recipe NAME` take them in place of their
defaults."""

from __future__ import annotations

from typing import Any

from remamba.errors import InputError
from remamba.fields import shown

Options = dict[str, Any]

BOTH: Options = {
    "parameters": "lora",
    "lora_rank": 32,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "max_length": 6000,
    "batch_size": 128,
    "accumulate": 16,
    "betas": (0.9, 0.999),
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
    "compressor_learning_rate_scale": 1.0,
    "decay_vectors": True,
    "group_by_length": False,
}
"""What the paper and the released code share, the baseline too. accumulate is for 8 GPUs with a
row at a time on each."""

TWO_STAGES: Options = {
    "start": 0.0,
    "length": (0.1, 0.3),
    "keep_ratio": (0.05, 0.2),
    "selector": "topk",
    "placement": "replace",
    "adaption": "selective",
    "window": 1,
    "value": "hidden",
    "importance": "relu",
    "eval_length": 0.18,
    "eval_keep_ratio": 0.009,
}
"""The second stage of both."""

PAPER: Options = {
    **BOTH,
    "lora_targets": ("in_proj", "out_proj", "embeddings", "lm_head"),
    "train_in_full": ("dt", "theta", "compressor"),
    # "others default": those of transformers' Trainer
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "lr_scheduler": "linear",
    "long_rows": "cut",
}
"""The paper's section on training and its Table 4's settings; docs/PAPER.md, "Training"."""

RELEASED: Options = {
    **BOTH,
    # the adapter on out_proj was there and never ran
    "lora_targets": ("in_proj", "embeddings", "lm_head"),
    "train_in_full": ("dt", "theta", "compressor"),
    "learning_rate": 2e-5,
    "weight_decay": 0.1,
    "lr_scheduler": "cosine",
    "long_rows": "skip",
    "short_prompt": (1600, 0.1),
    "keep_last": 1500,
}
"""Remambahf/Finetune.py of lblankl/ReMamba at cb127bc."""

RELEASED_MAMBA: Options = {
    **BOTH,
    # those on x_proj and out_proj never ran
    "lora_targets": ("in_proj", "embeddings"),
    "train_in_full": (),
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "lr_scheduler": "constant",
    "long_rows": "skip",
}
"""hopemamba2.8b/deepspeedmamba2.8.py there: transformers' Trainer, as its event log tells."""

LAST_STAGE: Options = {
    "batch_size": 32,
    "questions_per_document": 6,
    "learning_rate": 8e-4,
    "warmup_steps": 20,
    "document_loss": 0.3,
}
"""The last of the evidence's stages (recipes/branches.py), plain Mamba's too."""

SENTENCES: Options = {
    **LAST_STAGE,
    "start": 0.0,
    "length": (1.0, 1.0),
    "num_kept": 128,
    "selector": "topk",
    "window": 16,
    "placement": "replace",
    "adaption": "exact",
    "value": "residual",
    "importance": "relative",
    "stage1_loss": 1.0,
    "score_loss": 1.0,
    "score_target": "evidence",
    "score_negatives": "batch",
}
"""The form that wins in docs/EVIDENCE.md: the branch `sentences` at its last stage."""

RECIPES: dict[tuple[str, str], Options] = {
    ("none", "remamba"): {},
    ("none", "mamba"): {},
    ("sentences", "remamba"): SENTENCES,
    ("sentences", "mamba"): LAST_STAGE,
    ("paper", "remamba"): {**PAPER, **TWO_STAGES},
    ("paper", "mamba"): PAPER,
    ("released", "remamba"): {**RELEASED, **TWO_STAGES},
    ("released", "mamba"): RELEASED_MAMBA,
}
"""(recipe, method) -> options in place of TrainArgs' own defaults."""

NAMES = tuple(dict.fromkeys(name for name, _ in RECIPES if name != "none"))
FORM = ("start", "num_kept", "selector", "window", "placement", "adaption", "value", "importance")
"""Options of training that are settings of the model under the same name."""


def recipe_options(recipe: str, method: str = "remamba") -> Options:
    """The options of TrainArgs that a recipe sets; none by the name "none".

    Raises:
        InputError: there is no such recipe or method.
    """
    if (recipe, method) not in RECIPES:
        raise InputError(
            f"recipe {shown(recipe)} for method {shown(method)} is unknown; recipes are "
            f"{', '.join(NAMES)}, methods remamba and mamba"
        )
    return RECIPES[recipe, method]


def recipe_compression(name: str) -> Options:
    """The settings of CompressionConfig that a model trained by a recipe is saved with.

    Either `keep_ratio` or `num_kept` is among them.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in NAMES:
        raise InputError(f"recipe {shown(name)} is unknown; recipes are {', '.join(NAMES)}")
    options = RECIPES[name, "remamba"]
    settings = {key: options[key] for key in FORM if key in options}
    for key in ("length", "keep_ratio"):
        if key in options:
            low, high = options[key]
            settings[key] = options.get(f"eval_{key}", (low + high) / 2)
    return settings
