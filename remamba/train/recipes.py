"""`--recipe`: the options of TrainArgs as the paper, or its authors' code, would have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from remamba.errors import InputError
from remamba.train.config import TrainArgs

BOTH: dict[str, Any] = {
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
"""What both share, the baseline too. accumulate is for 8 GPUs with a row at a time on each."""

COMPRESSION: dict[str, Any] = {
    "start": 0.0,
    "length": (0.1, 0.3),
    "keep_ratio": (0.05, 0.2),
    "selector": "topk",
    "placement": "replace",
    "adaption": "selective",
    "window": 1,
    "value": "hidden",
    "importance": "relu",
    "score_gradient": "scaled",
    "eval_length": 0.18,
    "eval_keep_ratio": 0.009,
}

PAPER: dict[str, Any] = {
    **BOTH,
    "lora_targets": ("in_proj", "out_proj", "embeddings", "lm_head"),
    "train_in_full": ("dt", "theta", "compressor"),
    # "others default": those of transformers' Trainer
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "lr_scheduler": "linear",
    "long_rows": "cut",
}

RELEASED: dict[str, Any] = {
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

RELEASED_MAMBA: dict[str, Any] = {
    **BOTH,
    # those on x_proj and out_proj never ran
    "lora_targets": ("in_proj", "embeddings"),
    "train_in_full": (),
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "lr_scheduler": "constant",
    "long_rows": "skip",
}

RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("paper", "remamba"): {**PAPER, **COMPRESSION},
    ("paper", "mamba"): PAPER,
    ("released", "remamba"): {**RELEASED, **COMPRESSION},
    ("released", "mamba"): RELEASED_MAMBA,
}
"""(recipe, method) -> defaults that take the place of TrainArgs' own."""


def recipe_type(recipe: str, method: str) -> type[TrainArgs]:
    """TrainArgs with a recipe's defaults; what is given all the same still counts.

    Raises:
        InputError: there is no such recipe or method.
    """
    if (recipe, method) not in RECIPES:
        names = sorted({name for name, _ in RECIPES})
        raise InputError(
            f"recipe {recipe!r} for method {method!r} is unknown; recipes are {', '.join(names)}, "
            "methods remamba and mamba"
        )
    defaults = {**RECIPES[recipe, method], "recipe": recipe, "method": method}
    types = {field.name: field.type for field in dataclasses.fields(TrainArgs)}
    return dataclasses.make_dataclass(
        TrainArgs.__name__,
        [(name, types[name], dataclasses.field(default=value)) for name, value in defaults.items()],
        bases=(TrainArgs,),
        namespace={"__module__": TrainArgs.__module__, "__doc__": TrainArgs.__doc__},
        frozen=True,
    )


def args_type(argv: Sequence[str]) -> type[TrainArgs]:
    """The TrainArgs that a command line is read into: --recipe and --method choose the defaults."""
    recipe = _value(argv, "--recipe") or "none"
    method = _value(argv, "--method") or "remamba"
    return recipe_type(recipe, method) if (recipe, method) in RECIPES else TrainArgs


def _value(argv: Sequence[str], flag: str) -> str | None:
    """The last value of an option on a command line."""
    value = None
    for i, word in enumerate(argv):
        if word.startswith(flag + "="):
            value = word[len(flag) + 1 :]
        elif word == flag and i + 1 < len(argv):
            value = argv[i + 1]
    return value
