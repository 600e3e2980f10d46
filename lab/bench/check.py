"""Correctness first: what must be equal before any speed is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lab.bench.measure import progress
from lab.bench.passes import prefill, random_ids
from lab.bench.shapes import Shape, build, build_transformers
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.modeling_remamba import ReMambaForCausalLM

LIMITS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference over the largest value, by the dtype of the inputs."""
CHECK_LENGTH, CHECK_STEPS, CHECK_LAYERS = 131, 3, 4


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


def check_shape(shape: Shape, device: str, dtype: str) -> Iterator[dict[str, Any]]:
    """A few layers of the shape's widths beside transformers on the same weights.

    In float32 first, where a mistake cannot hide behind rounding, then in the dtype to be timed.
    The weights are random ones that use their states: with initial ones a state that is wrong by a
    tenth moves a Mamba's logits by 4e-5 only, with these by 1e-2.

    Raises:
        WrongResults: logits or the engine's greedy tokens differ.
    """
    few = replace(shape, num_hidden_layers=min(CHECK_LAYERS, shape.num_hidden_layers))
    for kind in dict.fromkeys(("float32", dtype)):
        ours = build(few, device, kind)
        use_states(ours)
        row = compare_logits(ours, build_transformers(few, ours), kind)
        yield {"layers": few.num_hidden_layers, "dtype": kind, "peer": "transformers", **row}


@torch.no_grad()
def use_states(model: ReMambaForCausalLM) -> None:
    """Larger time steps, B, C and outputs, and a small skip around the state, in place."""
    factors = {"out_proj.weight": 8.0, "x_proj.weight": 4.0, "D": 0.1}
    for name, parameter in model.backbone.layers.named_parameters():
        for end, factor in factors.items():
            if name.endswith(f".{end}"):
                parameter.mul_(factor)
        if name.endswith((".dt_proj.bias", ".dt_bias")):
            parameter.add_(2.0)


def limit_of_logits(dtype: str) -> float:
    """16-bit rounding adds up, layer by layer, in us and in the peers."""
    return LIMITS[dtype] * (1 if dtype == "float32" else 4)


def compare_logits(ours: ReMambaForCausalLM, theirs: nn.Module, dtype: str) -> dict[str, Any]:
    """Our logits, and what the engine draws, beside transformers' on the same weights.

    Raises:
        WrongResults: they differ.
    """
    limit = limit_of_logits(dtype)
    ids = random_ids(ours.config.vocab_size, 1, CHECK_LENGTH + CHECK_STEPS, str(ours.device))
    errors = {what: relative_error(a, b) for what, a, b in _pairs(ours, theirs, ids)}
    errors["the engine's tokens"] = _regret(ours, theirs, ids[:, :-CHECK_STEPS])
    return judge(f"{len(ours.backbone.layers)} layers in {dtype}, transformers", errors, limit)


def _regret(ours: ReMambaForCausalLM, theirs: Any, prompt: Tensor) -> float:
    """How far the engine's greedy tokens lie below transformers' best, over the largest logit."""
    options = SamplingOptions(max_new_tokens=CHECK_STEPS, ignore_eos=True)
    request = Request(prompt=prompt[0].tolist(), options=options, compression=False)
    (answer,) = Engine(ours, slots=1).run([request])
    tokens = torch.tensor([answer.token_ids], device=prompt.device)
    read = torch.cat([prompt, tokens[:, :-1]], dim=1)
    logits = theirs(read).logits[:, -CHECK_STEPS:].double()
    drawn = logits.gather(2, tokens[..., None])[..., 0]
    return float((logits.amax(dim=2) - drawn).max() / logits.abs().max())


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
