"""The backbone with the kernels equals the backbone without, as a model uses it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from remamba.configuration_remamba import ReMambaConfig
from remamba.model.backbone import Backbone
from remamba.model.states import StateCache
from remamba.model.time_step import Adaption
from remamba.ops import use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["mamba", "mamba2", "falcon_mamba"]


def make(kind: str, **changes) -> Backbone:
    settings = {
        "backbone_type": kind,
        "vocab_size": 20,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "state_size": 4,
        "head_dim": 4,
        "n_groups": 2,
    }
    config = ReMambaConfig(**settings | changes)
    backbone = Backbone(config).to(DEVICE)
    for name, parameter in backbone.named_parameters():
        if name.endswith(("theta", "conv1d.bias", "norm.weight")):
            torch.nn.init.normal_(parameter)
    return backbone


def case(length: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """embeds, lengths, alpha and the kept positions of two rows."""
    selected = torch.zeros(2, length, dtype=torch.bool)
    selected[0, 1:4] = selected[1, 0:2] = True
    alpha = torch.where(selected, torch.rand(2, length), 1.0)
    lengths = torch.tensor([length, 4])
    embeds = torch.randn(2, length, 12)
    return tuple(t.to(DEVICE) for t in (embeds, lengths, alpha, selected))


@pytest.mark.parametrize(
    ("kind", "exact"),
    [("mamba", True), ("mamba", False), ("mamba2", False), ("falcon_mamba", False)],
    ids=lambda value: {True: "exact", False: "selective"}.get(value, value),
)
def test_kernels_equal_torch(kind: str, exact: bool, assert_close) -> None:
    """Outputs, states and gradients, with pads, kept positions and states from before."""
    pytest.importorskip("triton")
    backbone = make(kind)
    embeds, lengths, alpha, selected = case()
    leaves = [embeds.requires_grad_(), alpha.requires_grad_(), *backbone.layers.parameters()]
    # a plain sum of squares would not change with what a norm divides away
    weigh = torch.randn(2, 6, 12, device=DEVICE)
    real = torch.arange(6, device=DEVICE) < lengths.unsqueeze(1)
    results = []
    for backend in ("torch", "triton"):
        cache = StateCache(2)
        with use_backend(backend):
            with torch.no_grad():
                backbone(embeds[:, :3], None, None, cache)
            hidden = backbone(embeds, lengths, Adaption(alpha, selected, exact), cache)
            with torch.no_grad():
                plain = backbone(embeds, lengths, Adaption(alpha, selected, exact))
        hidden, plain = hidden[real], plain[real]
        states = [*cache.conv_states, *cache.ssm_states]
        loss = (hidden * weigh[real]).sum() + sum(t.square().sum() for t in states)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        results.append([hidden, plain, *states, *grads])
    for got, expected in zip(results[1], results[0], strict=True):
        scale = expected.abs().max().clamp(min=1e-30)
        assert_close(got / scale, expected / scale)


@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_bit(kind: str, in_fp32: bool, assert_close) -> None:
    """On a GPU the products of a recomputed layer may be summed in another order."""
    backbone = make(kind, residual_in_fp32=in_fp32).train()
    embeds, lengths, alpha, selected = case()
    results = []
    for checkpointing in (False, True):
        for block in backbone.layers:
            block.gradient_checkpointing = checkpointing
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        hidden = backbone(embeds, lengths, Adaption(alpha, selected, False))
        results.append([hidden, *torch.autograd.grad(hidden.sum(), backbone.layers.parameters())])
    for got, expected in zip(*results, strict=True):
        if DEVICE == "cpu":
            assert torch.equal(got, expected)
        else:
            assert_close(got, expected)


@pytest.mark.parametrize("in_fp32", [True, False])
def test_residual_is_as_wide_as_configured(in_fp32: bool) -> None:
    backbone = make("mamba", residual_in_fp32=in_fp32).bfloat16()
    embeds = case()[0].bfloat16()
    x, residual, *_ = backbone.layers[0](embeds, None, None, None, None, None, None)
    _, total, *_ = backbone.layers[1](x, residual, None, None, None, None, None)
    assert x.dtype == torch.bfloat16
    assert total.dtype == (torch.float32 if in_fp32 else torch.bfloat16)
    assert torch.equal(total, residual + x)


@pytest.mark.parametrize("name", ["torch", "c", "triton"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_compiler_sees_all_of_it(kind, name, assert_close) -> None:
    """No break in the graph, with pads and an adaption; outputs and gradients are the same."""
    backbone, embeds = make(kind, num_hidden_layers=1), torch.randn(2, 3, 12, device=DEVICE)
    lengths = torch.tensor([3, 2], device=DEVICE)
    selected = torch.arange(3, device=DEVICE).expand(2, 3) < 1
    adaption = Adaption(torch.rand(2, 3, device=DEVICE), selected, False)
    torch.compiler.reset()
    with use_backend(name):
        compiled = torch.compile(backbone, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert_close(compiled(embeds, lengths, adaption), backbone(embeds, lengths, adaption))
        parameters = list(backbone.layers.parameters())
        found, wanted = (
            torch.autograd.grad(run(embeds, lengths, adaption).square().mean(), parameters)
            for run in (compiled, backbone)
        )
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)
