"""x W^T for the few rows of a decode step, with what stands before and after it in a block.

Reading W is the whole cost, so W is read once and everything else rides along: the norm before
the product, the convolution or the residual sum behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

MOST_ROWS = 64
"""Rows that one launch takes."""
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Tile(NamedTuple):
    """How W is cut: programs of `n` rows of W that walk along it by `k` columns."""

    n: int
    k: int
    warps: int
    stages: int
    splits: int = 1
    """Parts of the sum over columns, for a W of too few rows to make programs of."""


# most rows of x -> tile of a wide W (in_proj, lm_head), of a narrow one (out_proj), of x_proj: for
# one row the sum is split, for more it is not
TILES: dict[int, tuple[Tile, Tile, Tile]] = {
    1: (Tile(8, 512, 4, 3), Tile(4, 512, 4, 3), Tile(8, 128, 2, 4, splits=8)),
    16: (Tile(32, 128, 2, 4), Tile(16, 256, 2, 4), Tile(16, 512, 4, 3)),
    32: (Tile(64, 128, 4, 3), Tile(16, 128, 2, 4), Tile(16, 256, 4, 3)),
    64: (Tile(32, 64, 4, 4), Tile(16, 128, 4, 3), Tile(16, 128, 4, 3)),
}
WIDE = 4096
"""Rows of W from which it is wide: they are enough programs for a large GPU."""
SMALL = 512
"""Rows of W up to which there are few programs, each with a long sum."""


def tiles_for(rows: int) -> tuple[Tile, Tile, Tile]:
    """The tiles of TILES for so many rows of x."""
    assert rows <= MOST_ROWS, rows
    return next(tiles for most, tiles in TILES.items() if rows <= most)


def few_rows_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    groups: int = 1,
    window: torch.Tensor | None = None,
    conv_weight: torch.Tensor | None = None,
    conv_bias: torch.Tensor | None = None,
    conv_columns: tuple[int, int] = (0, 0),
    add: bool = False,
) -> None:
    """Write x W^T (+ bias) into `out`, a step of a block's products; nothing is returned.

    x (b, k), rows of unit stride, b at most MOST_ROWS; weight (n, k) contiguous; out (b, n). Sums
    are float32; what a module would store in the weight's dtype is rounded to it.

    Before: with norm_weight (k,) x is RMS-normed, each of `groups` by itself. Behind: columns
    [start, stop) of the product are convolved with `window` (b, w-1, stop-start), which moves on by
    one in place, and conv_weight (stop-start, 1, w), and go through silu; or, with `add`, the
    product is added to what `out` holds. An `out` (parts, b, n) of float32 takes so many parts of
    the sum instead, to be added by who reads them.
    """
    b, k = x.shape
    n = weight.shape[0]
    assert weight.is_contiguous() and x.stride(1) == 1, (weight.stride(), x.stride())
    is_split = out.dim() == 3
    tile = tiles_for(b)[2 if is_split or n <= SMALL else 0 if n >= WIDE else 1]
    splits = out.shape[0] if is_split else 1
    columns = triton.cdiv(k // groups, splits)
    block_k = tile.k
    while block_k > 128 and columns % block_k:  # whole blocks need no masks
        block_k //= 2
    width = 0 if conv_weight is None else conv_weight.shape[-1]
    assert not is_split or (norm_weight is None and bias is None), "a split sum takes no norm"
    grid = (triton.cdiv(n, tile.n), splits)
    _few_rows[grid](
        x, norm_weight, weight, bias, out, window, conv_weight, conv_bias,
        b, n, k, columns, eps, x.stride(0), out.stride(-2), *conv_columns,
        GROUPS=groups, NORMED=norm_weight is not None, ADD=add, SPLIT=is_split,
        WIDTH=width, ROWS=1 if b == 1 else max(16, triton.next_power_of_2(b)),
        EVEN=columns % block_k == 0 and columns * splits * groups == k,
        BLOCK_N=tile.n, BLOCK_K=block_k, STAGES=tile.stages,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _few_rows(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, out_ptr, window_ptr, conv_ptr, conv_bias_ptr,
    b, n, k, columns, eps, x_stride, out_stride, conv_start, conv_stop,
    GROUPS: tl.constexpr, NORMED: tl.constexpr, ADD: tl.constexpr, SPLIT: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype = weight_ptr.dtype.element_ty
    out_columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    # rows past the end read the last one: their sums are never stored
    w_rows = weight_ptr + tl.minimum(out_columns, n - 1).to(tl.int64) * k
    x_row = tl.minimum(row, b - 1)
    step = tl.arange(0, BLOCK_K)

    total = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for group in tl.static_range(GROUPS):
        first = (group + tl.program_id(1)) * columns
        if ROWS == 1:
            parts = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        else:
            parts = tl.zeros((ROWS, BLOCK_N), tl.float32)
        squares = tl.zeros((ROWS, BLOCK_K), tl.float32)
        for offset in tl.range(0, columns, BLOCK_K, num_stages=STAGES):
            column = first + offset + step
            x_place = x_row[:, None] * x_stride + column[None, :]
            if EVEN:
                x = tl.load(x_ptr + x_place)
            else:
                inside = (offset + step < columns) & (column < k)
                x = tl.load(x_ptr + x_place, inside[None, :], 0.0)
            x = x.to(dtype).to(tl.float32)
            if NORMED:
                squares += x * x
                if EVEN:
                    norm = tl.load(norm_ptr + column)
                else:
                    norm = tl.load(norm_ptr + column, inside, 0.0)
                x = x * norm.to(tl.float32)[None, :]
            if ROWS == 1:
                w_place = w_rows[:, None] + column[None, :]
                if EVEN:
                    w = tl.load(w_place, eviction_policy="evict_first")
                else:
                    w = tl.load(w_place, inside[None, :], 0.0, eviction_policy="evict_first")
                parts += w.to(tl.float32) * x
            else:
                w_place = w_rows[None, :] + column[:, None]
                if EVEN:
                    w = tl.load(w_place)
                else:
                    w = tl.load(w_place, inside[:, None], 0.0)
                x = x.to(dtype)
                if INTERPRETED:  # which cannot multiply bfloat16
                    x, w = x.to(tl.float32), w.to(tl.float32)
                parts = tl.dot(x, w, parts, input_precision="ieee")
        if ROWS == 1:
            sums = tl.sum(parts, axis=1)[None, :]
        else:
            sums = parts
        if NORMED:
            sums *= tl.rsqrt(tl.sum(squares, axis=1) / columns + eps)[:, None]
        total += sums

    stored = (row < b)[:, None] & (out_columns < n)[None, :]
    place = row[:, None] * out_stride + out_columns[None, :]
    if SPLIT:
        tl.store(out_ptr + tl.program_id(1) * b * n + place, total, stored)
        return
    if bias_ptr is not None:
        total += tl.load(bias_ptr + out_columns, out_columns < n, 0.0).to(tl.float32)[None, :]
    total = total.to(dtype).to(tl.float32)
    if ADD:
        total += tl.load(out_ptr + place, stored, 0.0).to(tl.float32)
    if WIDTH > 0:
        channels = conv_stop - conv_start
        channel = out_columns - conv_start
        is_channel = (channel >= 0) & (channel < channels)
        mixed = total * tl.load(conv_ptr + channel * WIDTH + WIDTH - 1, is_channel, 0.0).to(
            tl.float32
        )
        in_window = stored & is_channel[None, :]
        old = window_ptr + row[:, None] * ((WIDTH - 1) * channels) + channel[None, :]
        for j in tl.static_range(WIDTH - 1):
            past = tl.load(old + j * channels, in_window, 0.0)
            kernel = tl.load(conv_ptr + channel * WIDTH + j, is_channel, 0.0)
            mixed += past.to(tl.float32) * kernel.to(tl.float32)[None, :]
            if j > 0:
                tl.store(old + (j - 1) * channels, past, in_window)
        if WIDTH > 1:
            tl.store(old + (WIDTH - 2) * channels, total, in_window)
        if conv_bias_ptr is not None:
            mixed += tl.load(conv_bias_ptr + channel, is_channel, 0.0).to(tl.float32)[None, :]
        total = tl.where(is_channel[None, :], silu(mixed), total)
    tl.store(out_ptr + place, total, stored)
