"""The decode step's products equal nn.Linear's; gradients and adapters see an nn.Linear."""

import pytest
import torch
from torch import nn

from remamba.model.layers import LARGE_WEIGHT, GatedRMSNorm, Projection


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17])
def test_few_rows_equal_linear(rows, bias, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    fast = Projection(512, LARGE_WEIGHT // 512, bias=bias)
    slow = nn.Linear(512, LARGE_WEIGHT // 512, bias=bias)
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(rows, 1, 512)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), slow(x), rtol=1e-5, atol=1e-6)
    assert fast(x).requires_grad
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # rows that do not divide
    with torch.no_grad():
        torch.testing.assert_close(fast(x), slow(x), rtol=1e-5, atol=1e-6)


def test_lora_wraps_it_as_any_linear():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(Projection(512, LARGE_WEIGHT // 512, bias=False))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    )
    x = torch.randn(1, 512)
    with torch.no_grad():
        unmerged = adapted(x)
        merged = adapted.merge_and_unload()(x)
    torch.testing.assert_close(unmerged, merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_gated_norm_without_gradients_is_the_same(groups):
    norm = GatedRMSNorm(12, groups, 1e-5)
    norm.weight.data.normal_()
    y, z = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    kept = y.clone(), z.clone()
    with torch.no_grad():
        found = norm(y, z)
    torch.testing.assert_close(found, norm(y, z))
    assert torch.equal(y, kept[0]) and torch.equal(z, kept[1])
