"""The softplus of all kernels against float64, over the whole range of float32."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from remamba.ops.time_step.triton_softplus import slope, softplus

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ROUNDING = 12 if ON_GPU else 5
"""Of a result relatively, in 2^-24: a GPU's 2^x errs by two more units, and 1 / x by one."""
SMALLEST = 2.0**-126
"""A GPU takes what is smaller for 0."""


@triton.jit
def both_kernel(v, value, derivative, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(v + i, mask=i < count, other=0.0)
    soft, z = softplus(x)
    tl.store(value + i, soft, mask=i < count)
    tl.store(derivative + i, slope(x, z), mask=i < count)


def both(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    v = v.to(DEVICE)
    found = torch.empty_like(v), torch.empty_like(v)
    both_kernel[(triton.cdiv(len(v), 4096),)](v, *found, len(v), BLOCK=4096)
    return found[0].cpu(), found[1].cpu()


@pytest.mark.parametrize(
    ("low", "high"), [(-103, -87), (-87, -20), (-20, -2), (-2, 2), (2, 20), (20, 1000)]
)
def test_errs_by_a_few_units_of_the_last_place(low: float, high: float) -> None:
    v = torch.linspace(low, high, 200_001)
    wide = v.double()
    expected = torch.logaddexp(torch.zeros_like(wide), wide), wide.sigmoid()
    allowed = (ROUNDING + 1.2 * (-wide).clamp(min=0)) * 2.0**-24
    for found, exact in zip(both(v), expected, strict=True):
        assert ((found - exact).abs() <= allowed * exact + SMALLEST).all()


def test_edges() -> None:
    names = ["0", "-0", "1e-45", "-1e-45", "20", "-20", "88", "-88", "2e38", "-2e38", "inf", "-inf"]
    value, derivative = both(torch.tensor([float(name) for name in names]))
    half = torch.tensor(2.0).log()
    torch.testing.assert_close(value[:4], half.expand(4), rtol=6e-7, atol=0)
    torch.testing.assert_close(derivative[:4], torch.full((4,), 0.5), rtol=2e-7, atol=0)
    assert dict(zip(names[4::2], value[4::2].tolist(), strict=True)) == {
        "20": 20.0, "88": 88.0, "2e38": pytest.approx(2e38), "inf": float("inf"),
    }  # fmt: skip
    assert (value[5::2] >= 0).all() and value[7::2].max() <= 1e-38
    assert derivative[4::2].tolist() == [1.0] * 4 and derivative[9::2].tolist() == [0.0, 0.0]
    assert all(found.isnan() for found in both(torch.tensor([float("nan")])))
