"""Correctness first: what must be equal before any speed is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from remamba.bench.measure import progress
from remamba.bench.passes import prefill
from remamba.configuration_remamba import CompressionConfig
from remamba.modeling_remamba import ReMambaForCausalLM

LIMITS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference over the largest value, by the dtype of the inputs."""
CHECK_LENGTH, CHECK_STEPS = 131, 3


class WrongResults(Exception):
    """The contenders do not compute the same, so their speeds mean nothing."""


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value; NaN where either is not finite."""
    scale = wanted.double().abs().max().clamp(min=1e-30)
    return float((found.double() - wanted.double()).abs().max() / scale)


def judge(name: str, errors: Mapping[str, float], limit: float) -> dict[str, Any]:
    """The largest of the errors, `relative_error`, whose it is, `of`, and the limit.

    Raises:
        WrongResults: it is above the limit, or not a number.
    """
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    error = errors[worst]
    progress(f"check: {name}: relative error {error:.1e} ({worst})")
    if not error < limit:
        raise WrongResults(
            f"{name}: {worst} differs from what it must equal by {error:.1e} of the largest value "
            f"(limit {limit:g}): no speed is told"
        )
    return {"relative_error": error, "of": worst, "limit": limit}


def compare_logits(
    ours: ReMambaForCausalLM, theirs: nn.Module, ids: Tensor, limit: float
) -> dict[str, Any]:
    """Our logits beside those of transformers on the same weights; ids (b, l).

    Raises:
        WrongResults: they differ.
    """
    errors = {what: relative_error(a, b) for what, a, b in _pairs(ours, theirs, ids)}
    return judge("logits, transformers", errors, limit)


def _pairs(
    ours: ReMambaForCausalLM, theirs: Any, ids: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, our logits, transformers' logits)."""
    prompt, answer = ids[:, :-CHECK_STEPS], ids[:, -CHECK_STEPS:]
    a = ours(prompt, compression=False, use_cache=True)
    b = theirs(prompt, use_cache=True)
    yield f"prefill of {prompt.shape[1]} tokens", a.logits, b.logits
    steps = []
    for step in answer.split(1, dim=1):
        pair = (ours(step, cache_params=a.cache_params), theirs(step, cache_params=b.cache_params))
        steps.append([out.logits.clone() for out in pair])
    mine, peers = (torch.cat(logits, dim=1) for logits in zip(*steps, strict=True))
    yield f"{CHECK_STEPS} decode steps", mine, peers
    # the adaption enters the time step, which transformers cannot do: without it, stage 2 is a
    # plain pass over the kept vectors and what stands behind the span
    settings = CompressionConfig(adaption="none", num_kept=3)
    out = prefill(ours, prompt, compression=settings)
    assert out.kept is not None
    behind = theirs.get_input_embeddings()(prompt[:, int(prompt.shape[1] * settings.length + 1) :])
    spliced = torch.cat([out.kept.values.to(behind.dtype), behind], dim=1)
    yield (
        "stage 2 without adaption",
        out.logits,
        theirs(inputs_embeds=spliced, logits_to_keep=1).logits,
    )
