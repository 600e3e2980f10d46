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
from lab.bench.shapes import Shape, build, build_transformers, has_mamba_ssm
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.ops import use_backend

LIMITS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference over the largest value, by the dtype of the inputs."""
CHECK_LENGTH, CHECK_STEPS, CHECK_LAYERS = 131, 3, 4


class WrongResults(Exception):
    """The contenders do not compute the same, so their speeds mean nothing."""


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value; NaN where either is not finite."""
    scale = wanted.double().abs().max().clamp(min=1e-30)
    return float((found.double() - wanted.double()).abs().max() / scale)


def judge(
    name: str, errors: Mapping[str, float], limit: float, *, is_told: bool = False
) -> dict[str, Any]:
    """The largest of the errors, `relative_error`, whose it is, `of`, and the limit.

    Args:
        is_told: an error above the limit is no mistake of ours, and is told as `beyond`.

    Raises:
        WrongResults: it is above the limit, or not a number.
    """
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    error = errors[worst]
    progress(f"check: {name}: relative error {error:.1e} ({worst})")
    if not error < limit and is_told:
        return {"relative_error": error, "of": worst, "limit": limit, "beyond": True}
    if not error < limit:
        raise WrongResults(
            f"{name}: {worst} differs from what it must equal by {error:.1e} of the largest value "
            f"(limit {limit:g}): no speed is told"
        )
    return {"relative_error": error, "of": worst, "limit": limit}


def check_shape(shape: Shape, device: str, dtype: str) -> Iterator[dict[str, Any]]:
    """A few layers of the shape's widths beside transformers on the same weights.

    In float32 first, where a mistake cannot hide behind rounding, then in the dtype to be timed.
    Where mamba_ssm is installed, transformers takes its kernels, which multiply float32 numbers as
    TF32: then our kernels are compared with our torch forms, and transformers' difference is told.
    The weights are random ones that use their states: with initial ones a state that is wrong by a
    tenth moves a Mamba's logits by 4e-5 only, with these by 1e-2.

    Raises:
        WrongResults: logits or the engine's greedy tokens differ.
    """
    few = replace(shape, num_hidden_layers=min(CHECK_LAYERS, shape.num_hidden_layers))
    for kind in dict.fromkeys(("float32", dtype)):
        ours = build(few, device, kind)
        use_states(ours)
        is_narrowed = kind == "float32" and has_mamba_ssm() and device.startswith("cuda")
        about = {"layers": few.num_hidden_layers, "dtype": kind}
        if is_narrowed:
            yield {**about, "peer": "our torch forms", **compare_forms(ours, kind)}
        row = compare_logits(ours, build_transformers(few, ours), kind, is_told=is_narrowed)
        yield {**about, "peer": "transformers", **row}


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


def compare_forms(ours: ReMambaForCausalLM, dtype: str) -> dict[str, Any]:
    """Our logits by the forms that run here, beside those of the torch forms.

    Raises:
        WrongResults: they differ.
    """
    ids = random_ids(ours.config.vocab_size, 1, CHECK_LENGTH + CHECK_STEPS, str(ours.device))
    with use_backend("torch"):
        wanted = [b for _, b, _ in _pairs(ours, None, ids)]
    found = _pairs(ours, None, ids)
    errors = {what: relative_error(a, b) for (what, a, _), b in zip(found, wanted, strict=True)}
    return judge(
        f"{len(ours.backbone.layers)} layers in {dtype}, our torch forms",
        errors,
        limit_of_logits(dtype),
    )


def compare_logits(
    ours: ReMambaForCausalLM, theirs: nn.Module, dtype: str, *, is_told: bool = False
) -> dict[str, Any]:
    """Our logits, and what the engine draws, beside transformers' on the same weights.

    Raises:
        WrongResults: they differ.
    """
    limit = limit_of_logits(dtype)
    ids = random_ids(ours.config.vocab_size, 1, CHECK_LENGTH + CHECK_STEPS, str(ours.device))
    errors = {what: relative_error(a, b) for what, a, b in _pairs(ours, theirs, ids)}
    errors["the engine's tokens"] = _regret(ours, theirs, ids[:, :-CHECK_STEPS])
    name = f"{len(ours.backbone.layers)} layers in {dtype}, transformers"
    return judge(name, errors, limit, is_told=is_told)


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
    """(what, our logits, transformers' logits); ours twice where `theirs` is None."""
    prompt, answer = ids[:, :-CHECK_STEPS], ids[:, -CHECK_STEPS:]
    models = (ours, ours if theirs is None else theirs)
    plain: dict[str, Any] = {"compression": False}
    first = [m(prompt, use_cache=True, **(plain if m is ours else {})) for m in models]
    yield f"prefill of {prompt.shape[1]} tokens", *(out.logits for out in first)
    steps = []
    for step in answer.split(1, dim=1):
        caches = [out.cache_params for out in first]
        pair = [m(step, cache_params=c) for m, c in zip(models, caches, strict=True)]
        steps.append([out.logits.clone() for out in pair])
    mine, peers = (torch.cat(logits, dim=1) for logits in zip(*steps, strict=True))
    yield f"{CHECK_STEPS} decode steps", mine, peers
    # the adaption enters the time step, which transformers cannot do: without it, stage 2 is a
    # plain pass over the kept vectors and what stands behind the span
    settings = CompressionConfig(adaption="none", num_kept=3)
    out = prefill(ours, prompt, compression=settings)
    assert out.kept is not None
    behind = ours.get_input_embeddings()(prompt[:, int(prompt.shape[1] * settings.length + 1) :])
    spliced = torch.cat([out.kept.values.to(behind.dtype), behind], dim=1)
    peer = models[1]
    options = plain if peer is ours else {}
    yield (
        "stage 2 without adaption",
        out.logits,
        peer(inputs_embeds=spliced, logits_to_keep=1, **options).logits,
    )
