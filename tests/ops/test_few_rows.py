"""The product of a decode step, with each thing that rides along, equals the same in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")
from remamba.ops.decode_layer.triton_few_rows import MOST_ROWS, few_rows_product, tiles_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def normed(x: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    parts = x.unflatten(1, (groups, -1))
    return F.rms_norm(parts, (parts.shape[-1],), None, eps).flatten(1) * weight


@pytest.mark.parametrize("b", [1, 3, 17, 33, MOST_ROWS])
def test_plain_with_bias_of_strided_rows(b: int, same: Any) -> None:
    x, weight, bias = randn(b, 50)[:, :37], randn(21, 37), randn(21)
    out = torch.empty(b, 21, device=DEVICE)
    few_rows_product(x, weight, out, bias=bias)
    same(out, F.linear(x, weight, bias))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("b", [1, 3])
def test_norm_before_and_residual_behind(b: int, groups: int, same: Any) -> None:
    x, weight, norm, residual = 3 * randn(b, 36), randn(11, 36), randn(36), randn(b, 11)
    out = residual.clone()
    few_rows_product(x, weight, out, norm_weight=norm, eps=0.1, groups=groups, add=True)
    same(out, residual + normed(x, norm, groups, 0.1) @ weight.T)


@pytest.mark.parametrize("b", [1, 3])
def test_parts_of_the_sum(b: int, same: Any) -> None:
    """Of uneven length, the last one short."""
    x, weight = randn(b, 150), randn(9, 150)
    parts = torch.empty(tiles_for(b)[2].splits, b, 9, device=DEVICE)
    few_rows_product(x, weight, parts)
    same(parts.sum(0), x @ weight.T)


@pytest.mark.parametrize(
    ("width", "columns", "biased"), [(4, (0, 7), True), (3, (5, 17), False), (1, (2, 19), True)]
)
@pytest.mark.parametrize("b", [1, 3])
def test_convolution_of_some_columns(
    b: int, width: int, columns: tuple[int, int], biased: bool, same: Any
) -> None:
    start, stop = columns
    channels = stop - start
    x, weight, kernel = randn(b, 20), randn(19, 20), randn(channels, 1, width)
    bias = randn(channels) if biased else None
    window = randn(b, width - 1, channels)
    expected = x @ weight.T
    whole = torch.cat([window, expected[:, None, start:stop]], dim=1)
    mixed = (whole * kernel[:, 0].T).sum(1)
    expected[:, start:stop] = F.silu(mixed if bias is None else mixed + bias)
    out = torch.empty(b, 19, device=DEVICE)
    few_rows_product(
        x, weight, out,
        window=window, conv_weight=kernel, conv_bias=bias, conv_columns=columns,
    )  # fmt: skip
    same(out, expected)
    same(window, whole[:, 1:])


@pytest.mark.parametrize("b", [1, 5])
def test_float16_weights_beside_a_float32_residual(b: int, same: Any) -> None:
    x, residual = randn(b, 40), randn(b, 16)
    weight, norm = randn(16, 40, dtype=torch.float16), randn(40, dtype=torch.float16)
    out = residual.clone()
    few_rows_product(x, weight, out, norm_weight=norm, eps=1e-5, add=True)
    expected = normed(x.half().float(), norm.float(), 1, 1e-5) @ weight.float().T
    same(out, residual + expected, torch.float16)


def test_rows_are_the_same_in_any_company() -> None:
    """A row's sums do not depend on how many rows stand beside it, two or more."""
    x, weight = randn(16, 70), randn(30, 70)
    together, alone = (torch.empty(n, 30, device=DEVICE) for n in (16, 2))
    few_rows_product(x, weight, together)
    few_rows_product(x[4:6], weight, alone)
    assert torch.equal(together[4:6], alone)
