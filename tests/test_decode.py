"""A decode step in place equals the modules: fused or not, in rows of any number, bound or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from remamba import StateCache
from remamba.decode import DecodeStep
from remamba.ops import use_backend
from tests.tiny import tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODELS = {
    "mamba": ("mamba", {}),
    "mamba2-g2": ("mamba2", {}),
    "mamba2-g1-limit": ("mamba2", {"n_groups": 1, "time_step_limit": (0.01, 0.5)}),
    "falcon": ("falcon_mamba", {}),
    "biases": ("mamba", {"use_bias": True, "conv_kernel": 3, "residual_in_fp32": False}),
    "biases2": ("mamba2", {"use_bias": True, "conv_kernel": 2, "use_conv_bias": False}),
}


def model_of(name: str) -> Any:
    backbone, changes = MODELS[name]
    if changes.get("use_conv_bias", True):
        return tiny_model(backbone, **changes).to(DEVICE)
    from remamba import ReMambaConfig, ReMambaForCausalLM

    settings = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 8}
    torch.manual_seed(3)
    config = ReMambaConfig(backbone, **settings, head_dim=12, n_groups=2, **changes)
    return ReMambaForCausalLM(config).eval().to(DEVICE)


def tokens_of(model: Any, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.config.vocab_size, shape, generator=generator).to(DEVICE)


@torch.no_grad()
def read(model: Any, ids: Tensor) -> StateCache:
    cache = model.new_cache()
    model(ids, cache_params=cache, compression=False)
    return cache


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forced_tokens_equal_the_parallel_forward(
    name: str, backend: str, rows: int, assert_close: Any
) -> None:
    model = model_of(name)
    ids = tokens_of(model, rows, 10)
    with use_backend("torch"):
        expected = model(ids, compression=False).logits
        final = read(model, ids)
    step, cache = DecodeStep(model), read(model, ids[:, :6])
    with use_backend(backend):
        found = [step.logits(ids[:, i], cache) for i in range(6, 10)]
        assert step.is_fused == (backend == "triton")
    assert_close(torch.stack(found, dim=1), expected[:, 6:])
    for states, wanted in (
        (cache.conv_states, final.conv_states),
        (cache.ssm_states, final.ssm_states),
    ):
        for state, want in zip(states, wanted, strict=True):
            assert_close(state, want)
