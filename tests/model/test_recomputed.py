"""What a backward pass makes again equals what was kept, and is kept no longer."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from remamba import ReMambaConfig, ReMambaForCausalLM
from remamba.model import backbone

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {
    "mamba": {},
    "mamba2": {"head_dim": 8, "num_heads": 4, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": {},
}


@pytest.fixture(params=SIZES)
def model(request) -> ReMambaForCausalLM:
    config = ReMambaConfig(
        backbone_type=request.param, vocab_size=40, hidden_size=16, num_hidden_layers=2,
        state_size=8, **SIZES[request.param],
    )  # fmt: skip
    return ReMambaForCausalLM(config).to(DEVICE).train()


IDS = torch.arange(60).view(2, 30) % 39 + 1


def loss_of(model: ReMambaForCausalLM, **options) -> Tensor:
    """Of two rows of different lengths."""
    mask = torch.ones_like(IDS)
    mask[1, 22:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    given = {"input_ids": IDS, "attention_mask": mask, "labels": labels}
    given |= {"prompt_lengths": torch.tensor([26, 18])}
    on_device = {name: t.to(DEVICE) for name, t in given.items()}
    return model(**on_device, return_logits=False, **options).loss


def gradients(model: ReMambaForCausalLM, **options) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model, **options).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


TWO_STAGES = {"compression": {"length": 0.5, "keep_ratio": 0.3}}


@pytest.mark.parametrize("options", [{"compression": False}, TWO_STAGES], ids=["one", "two"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same(model, monkeypatch, assert_close, options, autocast: bool) -> None:
    def run() -> dict[str, Tensor]:  # a context each: it keeps what it has cast
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            return gradients(model, **options)

    remade = run()
    monkeypatch.setattr(backbone, "is_worth_recomputing", lambda: False)
    kept = run()
    assert remade.keys() == kept.keys()
    for name, grad in kept.items():
        assert torch.equal(remade[name], grad), name


def outputs_of(part: nn.Module, model: ReMambaForCausalLM) -> list[StorageWeakRef]:
    """Where in memory the part's outputs lie in a forward pass, told without keeping them."""
    found: list[StorageWeakRef] = []
    part.register_forward_hook(
        lambda _, __, out: found.append(
            StorageWeakRef((out[0] if isinstance(out, tuple) else out).untyped_storage())
        )
    )
    return found


@pytest.mark.parametrize("part", ["norm", "mixer.conv1d", "mixer.dt_proj", "mixer.norm"])
def test_large_results_are_let_go(model, monkeypatch, part: str) -> None:
    block = model.backbone.layers[0]
    try:
        module = block.get_submodule(part)
    except AttributeError:
        pytest.skip("this family has no such part")
    found = outputs_of(module, model)
    loss = loss_of(model, compression=False)
    gc.collect()
    assert found[0].expired()
    monkeypatch.setattr(backbone, "is_worth_recomputing", lambda: False)
    kept = loss_of(model, compression=False)
    gc.collect()
    assert not found[1].expired()
    del kept
    loss.backward()
    gc.collect()
    assert all(ref.expired() for ref in found)


def calls_of(part: nn.Module) -> list[int]:
    calls: list[int] = []
    part.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_graph_that_is_kept_can_be_gone_through_again(model) -> None:
    loss = loss_of(model, compression=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_checkpointed_block_makes_its_results_again_once(model) -> None:
    """Its own hooks decide: two calls, of the forward pass and of the block made again."""
    calls = calls_of(model.backbone.layers[0].mixer.conv1d)
    model.gradient_checkpointing_enable()
    loss_of(model, compression=False).backward()
    assert len(calls) == 2


def test_what_is_dropped_by_chance_is_not_made_again() -> None:
    """A second call of a projection with dropout would give other numbers."""
    config = ReMambaConfig(
        backbone_type="mamba", vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=8
    )
    model = ReMambaForCausalLM(config).to(DEVICE).train()
    mixer = model.backbone.layers[0].mixer
    mixer.dt_proj = nn.Sequential(mixer.dt_proj, nn.Dropout(0.5))
    calls = calls_of(mixer.dt_proj)
    loss_of(model, compression=False).backward()
    assert len(calls) == 1
    model.eval()
    loss_of(model, compression=False).backward()
    assert len(calls) == 3


def test_nothing_is_made_again_without_gradients(model) -> None:
    calls = calls_of(model.backbone.layers[0].mixer.conv1d)
    with torch.no_grad():
        loss_of(model, compression=False)
    assert len(calls) == 1
