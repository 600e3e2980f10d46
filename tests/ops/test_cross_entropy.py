"""The cross-entropy: worked out by hand, torch's own, and the kernel's, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from remamba.ops import cross_entropy, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["torch", "triton"])
def form(request) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


def with_gradient(logits: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """(losses, right, the gradient of the weighed sum of the losses)."""
    leaf = logits.detach().requires_grad_()
    loss, right = cross_entropy(leaf, target)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), leaf)
    return loss.detach(), right, gradient


def test_by_hand(form: str) -> None:
    """Shares 1/6, 2/6, 3/6; of two largest logits the first is what the row says."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 1.0], [2.0, 2.0, 1.0]], device=DEVICE).log()
    target = torch.tensor([1, 0, 1], device=DEVICE)
    weights = torch.tensor([1.0, 0.0, -2.0], device=DEVICE)
    with use_backend(form):
        loss, right, gradient = with_gradient(logits, target, weights)
    expected = [math.log(3), math.log(2.5), math.log(2.5)]
    torch.testing.assert_close(loss, torch.tensor(expected, device=DEVICE))
    assert right.tolist() == [False, True, False]
    rows = [[1 / 6, 2 / 6 - 1, 3 / 6], [0.0, 0.0, 0.0], [-0.8, 1.2, -0.4]]
    torch.testing.assert_close(gradient, torch.tensor(rows, device=DEVICE))


@pytest.mark.parametrize("classes", [2, 5, 4096, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_equals_torch(classes: int, dtype: torch.dtype, same) -> None:
    """Rows of several blocks, in a wider tensor; large logits, and some of -inf."""
    pytest.importorskip("triton")
    wide = (8 * torch.randn(5, classes + 3, device=DEVICE)).to(dtype)
    wide[0] += 300
    wide[1, : classes // 2] = -torch.inf
    logits = wide[:, :classes]
    target = torch.tensor([0, classes - 1, classes // 2, classes - 1, 0], device=DEVICE)
    weights = torch.randn(5, device=DEVICE)
    results = {}
    for form in ("torch", "triton"):
        with use_backend(form):
            results[form] = with_gradient(logits, target, weights)
    same(results["triton"][0], results["torch"][0])
    assert torch.equal(results["triton"][1], results["torch"][1])
    same(results["triton"][2], results["torch"][2])
    assert results["triton"][2].dtype == dtype


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_row_of_infinities_has_no_loss_and_spoils_no_other(form: str) -> None:
    logits = torch.zeros(2, 4, device=DEVICE)
    logits[0] = -torch.inf
    with use_backend(form):
        loss, _ = cross_entropy(logits, torch.tensor([0, 1], device=DEVICE))
    assert torch.isnan(loss[0])
    assert loss[1].item() == pytest.approx(math.log(4))


def test_one_class_costs_nothing(form: str) -> None:
    """Nor does it lose digits beside a large logit."""
    logits = torch.full((3, 1), 300.7, device=DEVICE)
    target = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with use_backend(form):
        loss, right, gradient = with_gradient(logits, target, torch.ones(3, device=DEVICE))
    assert right.all()
    torch.testing.assert_close(loss, torch.zeros(3, device=DEVICE), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(3, 1, device=DEVICE), atol=1e-6, rtol=0)


def test_narrow_logits_give_a_loss_of_float32() -> None:
    """Their sum over many rows is what a training step is told."""
    logits = torch.randn(7, 30, device=DEVICE).bfloat16()
    target = torch.arange(7, device=DEVICE)
    loss, _ = cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.double(), target, reduction="none")
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)


def test_no_rows() -> None:
    loss, right = cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert loss.shape == right.shape == (0,)
