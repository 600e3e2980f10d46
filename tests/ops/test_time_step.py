"""adapt_dt and decay_rate: the kernels equal torch's forms; what was not kept is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remamba.ops import adapt_dt, decay_rate, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CASES = {
    "b2-l5-c3": ((2, 5, 3), torch.float32, {"alpha", "bias"}),
    "b1-l70-c130": ((1, 70, 130), torch.float32, {"alpha", "bias"}),
    "b2-l5-c3-nobias": ((2, 5, 3), torch.float32, {"alpha"}),
    "b2-l5-c3-exact": ((2, 5, 3), torch.float32, {"bias"}),
    "b2-l9-c20-bf16": ((2, 9, 20), torch.bfloat16, {"alpha", "bias"}),
}


def make(case: str) -> tuple[dict[str, Tensor], Tensor]:
    """dt is part of a wider tensor; alpha and selected are pieces of longer ones."""
    (b, l, c), dtype, names = CASES[case]
    selected = torch.rand(b, l + 2, device=DEVICE)[:, 1:-1] < 0.4
    selected[:, 0], selected[:, -1] = True, False
    inputs = {
        "dt": torch.randn(b, l, c + 5, device=DEVICE).to(dtype),
        "theta": torch.randn(c, device=DEVICE).to(dtype),
        "bias": torch.randn(c, device=DEVICE).to(dtype),
        "alpha": torch.rand(b, l + 3, device=DEVICE),
    }
    kept = {name: t for name, t in inputs.items() if name in names | {"dt", "theta"}}
    return kept, selected


def run(inputs: dict[str, Tensor], selected: Tensor) -> Tensor:
    inputs = inputs | {"dt": inputs["dt"][..., 5:]}
    if "alpha" in inputs:
        inputs["alpha"] = inputs["alpha"][:, 3:]
    return adapt_dt(selected=selected, **inputs)


@pytest.mark.parametrize("case", CASES)
def test_adapt_dt_kernel_equals_torch(case: str, same) -> None:
    pytest.importorskip("triton")
    inputs, selected = make(case)
    dt = inputs["dt"][..., 5:].clone()
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    weigh = torch.randn(dt.shape, device=DEVICE).to(dt.dtype)
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            out = run(leaves, selected)
        grads = torch.autograd.grad(
            out, list(leaves.values()), weigh, allow_unused=True, materialize_grads=True
        )
        assert torch.equal(out[~selected], dt[~selected])
        results.append([out, *grads])
    # sums over bfloat16 products are as exact as they
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        same(got, expected, dt.dtype)

    with use_backend("triton"), torch.no_grad():
        changed = run(leaves, selected)
    same(changed, results[0][0])
    assert torch.equal(changed[~selected], dt[~selected])


def test_is_known_to_torch_library() -> None:
    pytest.importorskip("triton")
    import remamba.ops.time_step.triton  # noqa: F401

    dt, theta, alpha, bias = (
        torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((2, 3, 6), 6, (2, 3), 6)
    )
    selected = torch.rand(2, 3, device=DEVICE) < 0.5
    for a, bias_or_none in ((alpha, bias), (None, bias), (alpha, None)):
        torch.library.opcheck(
            torch.ops.remamba.adapt_dt.default,
            (dt, selected, theta, a, bias_or_none),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(1,), (70, 16), (1100,)], ids=str)
def test_decay_rate_of_the_kernel_is_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, same
) -> None:
    pytest.importorskip("triton")
    A_log = torch.randn(shape, device=DEVICE).to(dtype)
    with use_backend("triton"):
        A = decay_rate(A_log)
    assert A.dtype == torch.float32
    same(A, -A_log.float().exp())
    A_log.requires_grad_()
    with use_backend("triton"):
        decay_rate(A_log).sum().backward()
    same(A_log.grad, A.to(dtype))


def test_float64_decay_rate_stays() -> None:
    with use_backend("triton"):
        assert decay_rate(torch.zeros(3, dtype=torch.float64, device=DEVICE)).dtype == torch.float64
