"""An op and its eager form: the same values and gradients, and none where none can be had."""

from __future__ import annotations

import pytest
import torch

from remamba.ops.recording import is_recorded, with_gradient


def cube(x: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * x**3


def cube_backward(x: torch.Tensor, dy: torch.Tensor, scale: float) -> torch.Tensor:
    return 3 * scale * x**2 * dy


def like_x(x, *_):
    return x.new_empty(x.shape)


def save(ctx, inputs, output):
    x, ctx.scale = inputs
    ctx.save_for_backward(x)


def gradients(ctx, backward, dy):
    (x,) = ctx.saved_tensors
    return backward(x, dy, ctx.scale), None


recorded = with_gradient(
    "remamba_tests::cube", cube, cube_backward,
    fake=like_x, fake_backward=like_x, save=save, gradients=gradients,
)  # fmt: skip


def test_eager_and_registered_are_one() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad((2.0 * x**3).sum(), x)
    registered = torch.ops.remamba_tests.cube.default
    for run in (recorded, registered, torch.compile(recorded, backend="aot_eager", fullgraph=True)):
        y = run(x, 2.0)
        assert torch.allclose(y, 2.0 * x**3)
        (found,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(found, wanted)
    assert torch.library.opcheck(registered, (x, 2.0))


def test_a_second_derivative_is_refused_and_not_left_out() -> None:
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad(recorded(x, 1.0).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.sum().backward()


def test_nothing_is_recorded_without_gradients() -> None:
    x = torch.randn(2)
    assert not is_recorded(x, None)
    assert is_recorded(x.requires_grad_())
    with torch.no_grad():
        assert not is_recorded(x)
