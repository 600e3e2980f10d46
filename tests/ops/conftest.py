"""How the ops are compared: outputs and every gradient, relative to the largest entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Results = dict[str, Tensor]


@pytest.fixture
def same(assert_close: Callable[..., None]) -> Callable[..., None]:
    """`same(actual, expected, dtype=None)`: equal relative to the largest entry, as dtype allows.

    Takes tensors or dictionaries of them; dtype is the expected tensor's own unless named.
    """

    def check(
        actual: Tensor | Results, expected: Tensor | Results, dtype: torch.dtype | None = None
    ) -> None:
        if isinstance(expected, dict):
            assert isinstance(actual, dict)
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                try:
                    check(actual[name], value, dtype)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {error}") from error
            return
        scale = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1.0
        assert_close(actual / scale, expected / scale, dtype or expected.dtype)

    return check


@pytest.fixture
def outputs_and_grads() -> Callable[..., Results]:
    """`outputs_and_grads(op, inputs, **options)`: y, state and the gradient of every input tensor.

    The loss weighs every entry of y and of the final state, so that all gradients meet all paths.
    """

    def run(op: Callable[..., tuple[Tensor, Tensor]], inputs: Results, **options) -> Results:
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        y, state = op(**leaves, **options)
        weigh = torch.Generator().manual_seed(7)
        # bfloat16 numbers, so that every dtype weighs alike
        weights = [
            torch.randn(t.shape, generator=weigh).to(torch.bfloat16).to(t.device, t.dtype)
            for t in (y, state)
        ]
        grads = torch.autograd.grad((y, state), list(leaves.values()), weights)
        results = {"y": y.detach(), "state": state.detach()}
        return results | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}

    return run


@pytest.fixture
def saved_elements() -> Callable[[Callable[[], object]], int]:
    """`saved_elements(run)`: how many elements autograd keeps alive for run's backward."""

    def count(run: Callable[[], object]) -> int:
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            keep = run()
        del keep
        return sum(storages.values()) // 4

    return count
