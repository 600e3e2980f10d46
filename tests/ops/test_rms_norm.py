"""The norms in Triton equal torch's: outputs, sums and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remamba.ops import gated_rms_norm, rms_norm, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5

F32, BF16 = torch.float32, torch.bfloat16


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of a loss that weighs every entry of every output."""
    weigh = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=weigh).to(t) for t in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights))


@pytest.mark.parametrize(
    ("shape", "x_dtype", "residual_dtype", "weight_dtype"),
    [
        ((2, 3, 5), F32, None, F32),
        ((2, 3, 5), F32, F32, F32),
        ((1, 7, 70), F32, F32, None),
        ((2, 30, 100), BF16, F32, BF16),
        ((2, 3, 40), BF16, BF16, BF16),
        ((2, 3, 40), BF16, None, BF16),
    ],
    ids=str,
)
def test_norm_equals_torch(shape, x_dtype, residual_dtype, weight_dtype, same) -> None:
    """x is half of a wider tensor; without a residual the sum is x itself."""
    pytest.importorskip("triton")
    b, l, d = shape
    wide = torch.randn(b, l, 2 * d, device=DEVICE).to(x_dtype).requires_grad_()
    inputs = {"x": wide}
    if residual_dtype:
        inputs["residual"] = torch.randn(shape, device=DEVICE).to(residual_dtype).requires_grad_()
    if weight_dtype:
        inputs["weight"] = torch.randn(d, device=DEVICE).to(weight_dtype).requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        return rms_norm(**inputs | {"x": wide[..., d:]}, eps=EPS)

    # a float32 gradient that passed through bfloat16 is as exact as that
    narrow = BF16 if x_dtype == BF16 else F32
    results = {}
    for backend in ("torch", "triton"):
        with use_backend(backend):
            normed, total = run()
            with torch.no_grad():
                again, _ = run()
        assert torch.equal(again, normed)
        results[backend] = [normed, total, *gradients([normed, total], list(inputs.values()))]
    for got, expected in zip(results["triton"], results["torch"], strict=True):
        assert got.dtype == expected.dtype
        same(got, expected, narrow)
    if DEVICE == "cuda" or narrow == F32:  # the interpreter cuts bfloat16 instead of rounding
        assert torch.equal(results["triton"][1], results["torch"][1])


@pytest.mark.parametrize("unused", ["norm", "sum"])
def test_gradients_of_one_result(unused: str, same) -> None:
    pytest.importorskip("triton")
    inputs = [torch.randn(2, 3, 5, device=DEVICE, requires_grad=True) for _ in range(2)]
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            outputs = rms_norm(inputs[0], residual=inputs[1], eps=EPS)
        results.append(gradients([outputs[unused == "norm"]], inputs))
    for got, expected in zip(*results, strict=True):
        same(got, expected)


@pytest.mark.parametrize("groups", [1, 3], ids=lambda g: f"g{g}")
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(F32, F32), (BF16, BF16), (BF16, F32)], ids=str
)
def test_gated_norm_equals_torch(groups: int, dtype, weight_dtype, same) -> None:
    """z is a part of a wider tensor, as the mixer's is."""
    pytest.importorskip("triton")
    b, l, e = 2, 5, 30
    y = torch.randn(b, l, e, device=DEVICE).to(dtype).requires_grad_()
    wide = torch.randn(b, l, 2 * e + 3, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(e, device=DEVICE).to(weight_dtype).requires_grad_()
    results = {}
    for backend in ("torch", "triton"):
        with use_backend(backend):
            out = gated_rms_norm(y, wide[..., :e], weight, groups=groups, eps=EPS)
            with torch.no_grad():
                again = gated_rms_norm(y, wide[..., :e], weight, groups=groups, eps=EPS)
        same(again, out)
        results[backend] = [out, *gradients([out], [y, wide, weight])]
    for got, expected in zip(results["triton"], results["torch"], strict=True):
        assert got.dtype == expected.dtype
        same(got, expected, dtype)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_weights_may_be_strided(backend, same) -> None:
    x, z, weight = (torch.randn(*s, device=DEVICE) for s in ((3, 6), (3, 6), (6,)))
    spread = weight.repeat_interleave(2)[::2]
    with use_backend(backend):
        same(rms_norm(x, spread, eps=EPS)[0], rms_norm(x, weight, eps=EPS)[0])
        found = gated_rms_norm(x, z, spread, groups=2, eps=EPS)
        same(found, gated_rms_norm(x, z, weight, groups=2, eps=EPS))


def test_many_rows_a_program(same, monkeypatch) -> None:
    """More tiles of rows than programs: each adds up the weight's gradient of several."""
    pytest.importorskip("triton")
    from remamba.ops.norm import triton as rms_norm_triton

    monkeypatch.setattr(rms_norm_triton, "PROGRAMS", 2)
    monkeypatch.setattr(
        rms_norm_triton,
        "_shape",
        lambda rows, width: (-(-rows // 2), {"ROWS": 2, "BLOCK": 8, "num_warps": 1}),
    )
    x, z = (torch.randn(11, 6, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, device=DEVICE, requires_grad=True)
    results = []
    for backend in ("torch", "triton"):
        with use_backend(backend):
            outputs = [
                rms_norm(x, weight, eps=EPS)[0],
                gated_rms_norm(x, z, weight, groups=1, eps=EPS),
            ]
        results.append([*outputs, *gradients(outputs, [x, z, weight])])
    for got, expected in zip(*results, strict=True):
        same(got, expected)


def test_norms_are_known_to_torch_library() -> None:
    pytest.importorskip("triton")
    import remamba.ops.norm.triton  # noqa: F401

    x, z = (torch.randn(2, 3, 6, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (torch.ops.remamba.rms_norm, (x, weight, z, EPS)),
        (torch.ops.remamba.rms_norm, (x, None, None, EPS)),
        (torch.ops.remamba.gated_rms_norm, (x, z, weight, 2, EPS)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=checks)


def test_empty_rows_and_float64_go_to_torch(same) -> None:
    with use_backend("triton"):
        weight = torch.ones(5, device=DEVICE)
        assert rms_norm(torch.randn(2, 0, 5, device=DEVICE), weight, eps=EPS)[0].shape == (2, 0, 5)
        x = torch.randn(2, 3, 5, dtype=torch.float64, device=DEVICE)
        normed, _ = rms_norm(x, weight.double(), eps=EPS)
    same(normed, x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt())
