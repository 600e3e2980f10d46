"""rms_norm and gated_rms_norm in Triton, forward and backward.

A program holds whole rows (or a row's group of channels) in registers, so that each is read once.
In the backward pass a program takes every so-manieth tile of rows and keeps its own sum of the
weight's gradient; the sums are added afterwards, in one order.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from remamba.ops.backend import limited
from remamba.ops.device import on_device
from remamba.ops.precision import beyond_float32
from remamba.ops.recording import is_recorded, with_gradient
from remamba.ops.triton_launch import launched

PROGRAMS = 528
"""Of a backward pass at most, four for each multiprocessor of 132."""

# the gated kernels' strides come divided by ALIGNED: triton itself would only see multiples of 16


@triton.jit
def _tile(tile, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Row numbers (ROWS, 1) in 64 bits, channels (1, BLOCK), and which of the tile exist."""
    row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    return row, channel, (row < rows) & (channel < width)


@launched
@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x, residual, weight, normed, total, rows, width, x_row, residual_row, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, channel, mask = _tile(tl.program_id(0), rows, width, ROWS, BLOCK)
    v = tl.load(x + row * x_row + channel, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + row * residual_row + channel, mask=mask, other=0.0).to(tl.float32)
        v = v.to(total.dtype.element_ty)
        tl.store(total + row * width + channel, v, mask=mask)
    v = v.to(normed.dtype.element_ty).to(tl.float32)
    v *= tl.rsqrt(tl.sum(v * v, axis=1) / width + eps)[:, None]
    if weight is not None:
        v *= tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    tl.store(normed + row * width + channel, v, mask=mask)


@launched
@triton.jit(do_not_specialize=["rows", "tiles"])
def _backward_kernel(
    total, weight, dnormed, dtotal, dx, dresidual, partial,
    rows, width, tiles, total_row, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)[None, :]
    scale = tl.full((1, BLOCK), 1.0, tl.float32)
    if weight is not None:
        scale = tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, channel, mask = _tile(tile, rows, width, ROWS, BLOCK)
        v = tl.load(total + row * total_row + channel, mask=mask, other=0.0)
        v = v.to(dnormed.dtype.element_ty).to(tl.float32)
        d = tl.load(dnormed + row * width + channel, mask=mask, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(v * v, axis=1) / width + eps)[:, None]
        v *= factor
        dweight += d * v
        d *= scale
        d = factor * (d - v * (tl.sum(d * v, axis=1) / width)[:, None])
        if dtotal is not None:
            d += tl.load(dtotal + row * width + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + row * width + channel, d, mask=mask)
        if dresidual is not None:
            tl.store(dresidual + row * width + channel, d, mask=mask)
    if partial is not None:
        to = partial + tl.program_id(0) * width + tl.arange(0, BLOCK)
        tl.store(to, tl.sum(dweight, axis=0), mask=tl.arange(0, BLOCK) < width)


@launched
@triton.jit(do_not_specialize=["rows"])
def _gated_forward_kernel(
    y, z, weight, out, rows, width, channels, y_row, z_row, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row, channel, mask = _tile(tl.program_id(0), rows, width, ROWS, BLOCK)
    is_channel = channel < width
    channel += tl.program_id(1) * width
    v = tl.load(y + row * y_row * ALIGNED + channel, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(z + row * z_row * ALIGNED + channel, mask=mask, other=0.0).to(tl.float32)
    v *= gate / (1.0 + tl.exp(-gate))
    v *= tl.rsqrt(tl.sum(v * v, axis=1) / width + eps)[:, None]
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    v = v.to(y.dtype.element_ty).to(tl.float32) * scale
    tl.store(out + row * channels + channel, v, mask=mask)


@launched
@triton.jit(do_not_specialize=["rows", "tiles"])
def _gated_backward_kernel(
    y, z, weight, dout, dy, dz, partial,
    rows, width, channels, tiles, y_row, z_row, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * width
    place = first + tl.arange(0, BLOCK)
    is_channel = tl.arange(0, BLOCK) < width
    scale = tl.load(weight + place, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, channel, mask = _tile(tile, rows, width, ROWS, BLOCK)
        channel += first
        u = tl.load(y + row * y_row * ALIGNED + channel, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(z + row * z_row * ALIGNED + channel, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(dout + row * channels + channel, mask=mask, other=0.0).to(tl.float32)
        opened = 1.0 / (1.0 + tl.exp(-gate))
        silu = gate * opened
        v = u * silu
        factor = tl.rsqrt(tl.sum(v * v, axis=1) / width + eps)[:, None]
        v *= factor
        dweight += d * v.to(y.dtype.element_ty).to(tl.float32)
        d *= scale
        d = factor * (d - v * (tl.sum(d * v, axis=1) / width)[:, None])
        tl.store(dy + row * channels + channel, d * silu, mask=mask)
        d *= u * opened * (1.0 + gate * (1.0 - opened))
        tl.store(dz + row * channels + channel, d, mask=mask)
    to = partial + tl.program_id(0) * channels + place
    tl.store(to, tl.sum(dweight, axis=0), mask=is_channel)


def _fits(x, weight=None, **options) -> str:
    return beyond_float32(x, weight)


def _gated_fits(y, *others, **options) -> str:
    return beyond_float32(y)


@limited(_fits)
def rms_norm_triton(x, weight=None, *, residual=None, eps):
    """rms_norm in one launch; x and residual may be views whose rows are apart."""
    if is_recorded(x, weight, residual):
        normed, total = _recorded(x, weight, residual, eps)
    else:
        normed, total = _forward(x, weight, residual, eps)
    return normed, x if residual is None else total


@limited(_gated_fits)
def gated_rms_norm_triton(y, z, weight, *, groups, eps):
    """gated_rms_norm in one launch; y and z may be views whose rows are apart."""
    if is_recorded(y, z, weight):
        return _gated_recorded(y, z, weight, groups, eps)
    return _gated_forward(y, z, weight, groups, eps)


def _as_rows(t: torch.Tensor) -> torch.Tensor:
    """(rows, width), a view where there is one; the entries of a row lie side by side."""
    if t.is_contiguous():
        return t.view(-1, t.shape[-1])
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()


@functools.lru_cache(maxsize=1024)
def _shape(rows: int, width: int) -> tuple[int, dict[str, int]]:
    """Tiles of rows, and the kernels' constants: about 2,048 entries or a row of them a program."""
    block = triton.next_power_of_2(width)
    rows_of_tile = max(min(2048 // block, triton.next_power_of_2(rows)), 1)
    warps = min(max(rows_of_tile * block // 512, 1), 16)
    constants = {"ROWS": rows_of_tile, "BLOCK": block, "num_warps": warps}
    return triton.cdiv(rows, rows_of_tile), constants


def _total_dtype(x, residual) -> torch.dtype:
    return torch.promote_types(x.dtype, residual.dtype)


def _forward(x, weight, residual, eps):
    width = x.shape[-1]
    flat = _as_rows(x)
    dtype = x.dtype if residual is None else _total_dtype(x, residual)
    total = None
    if residual is not None:
        residual = _as_rows(residual)
        total = torch.empty(x.shape, dtype=dtype, device=x.device)
    normed = torch.empty(x.shape, dtype=dtype if weight is None else weight.dtype, device=x.device)
    if weight is not None:
        weight = weight.contiguous()
    rows = flat.shape[0]
    tiles, shape = _shape(rows, width)
    with on_device(x):
        _forward_kernel[(tiles,)](
            flat, residual, weight, normed, total, rows, width,
            flat.stride(0), 0 if residual is None else residual.stride(0), eps, **shape,
        )  # fmt: skip
    return normed, total


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, residual: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The second result is empty without a residual: an op returns none of its inputs."""
    normed, total = _forward(x, weight, residual, eps)
    return normed, x.new_empty(0) if total is None else total


def _fake(x, weight, residual, eps):
    dtype = x.dtype if residual is None else _total_dtype(x, residual)
    normed = x.new_empty(x.shape, dtype=dtype if weight is None else weight.dtype)
    return normed, x.new_empty(0 if residual is None else x.shape, dtype=dtype)


def _rms_norm_backward(
    total: torch.Tensor,
    weight: torch.Tensor | None,
    dnormed: torch.Tensor,
    dtotal: torch.Tensor | None,
    eps: float,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx; dresidual, empty where it equals dx; dweight (d,) float32, empty without a weight."""
    width = total.shape[-1]
    flat, dnormed = _as_rows(total), dnormed.contiguous()
    dtotal = None if dtotal is None else dtotal.contiguous()
    dx = torch.empty(total.shape, dtype=x_dtype, device=total.device)
    dresidual = None
    if residual_dtype not in (None, x_dtype):
        dresidual = torch.empty(total.shape, dtype=residual_dtype, device=total.device)
    tiles, shape = _shape(len(flat), width)
    programs = min(tiles, PROGRAMS)
    partial = None
    if weight is not None:
        weight = weight.contiguous()
        partial = torch.empty((programs, width), dtype=torch.float32, device=total.device)
    with on_device(total):
        _backward_kernel[(programs,)](
            flat, weight, dnormed, dtotal, dx, dresidual, partial,
            len(flat), width, tiles, flat.stride(0), eps, **shape,
        )  # fmt: skip
    dweight = dx.new_empty(0, dtype=torch.float32) if partial is None else partial.sum(0)
    return dx, dx.new_empty(0) if dresidual is None else dresidual, dweight


def _fake_backward(total, weight, dnormed, dtotal, eps, x_dtype, residual_dtype):
    separate = residual_dtype not in (None, x_dtype)
    return (
        total.new_empty(total.shape, dtype=x_dtype),
        total.new_empty(total.shape if separate else 0, dtype=residual_dtype or x_dtype),
        total.new_empty(0 if weight is None else total.shape[-1], dtype=torch.float32),
    )


def _save(ctx, inputs, output):
    x, weight, residual, ctx.eps = inputs
    ctx.x_dtype = x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.save_for_backward(x if residual is None else output[1], weight)
    ctx.set_materialize_grads(False)


def _gradients(ctx, backward, dnormed, dtotal):
    total, weight = ctx.saved_tensors
    if ctx.residual_dtype is None:
        dtotal = None
    if dnormed is None:
        dtype = total.dtype if weight is None else weight.dtype
        dnormed = torch.zeros(total.shape, dtype=dtype, device=total.device)
    dx, dresidual, dweight = backward(
        total, weight, dnormed, dtotal, ctx.eps, ctx.x_dtype, ctx.residual_dtype
    )
    if ctx.residual_dtype is None:
        dresidual = None
    elif ctx.residual_dtype == ctx.x_dtype:
        dresidual = dx
    return dx, None if weight is None else dweight.to(weight.dtype), dresidual, None


_recorded = with_gradient(
    "remamba::rms_norm", _rms_norm, _rms_norm_backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip


def _gated_forward(
    y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    channels = y.shape[-1]
    width = channels // groups
    dtype = torch.promote_types(y.dtype, weight.dtype)
    out = torch.empty(y.shape, dtype=dtype, device=y.device)
    y, z, weight = _as_rows(y), _as_rows(z), weight.contiguous()
    tiles, shape = _shape(len(y), width)
    aligned = math.gcd(y.stride(0), z.stride(0), 16)
    with on_device(y):
        _gated_forward_kernel[(tiles, groups)](
            y, z, weight, out, len(y), width, channels,
            y.stride(0) // aligned, z.stride(0) // aligned, eps, **shape, ALIGNED=aligned,
        )  # fmt: skip
    return out


def _fake_gated(y, z, weight, groups, eps):
    return y.new_empty(y.shape, dtype=torch.promote_types(y.dtype, weight.dtype))


def _gated_backward(
    y: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    dout: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dy, dz (..., e); dweight (e,) float32."""
    channels = y.shape[-1]
    width = channels // groups
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dz = torch.empty(z.shape, dtype=z.dtype, device=y.device)
    y, z, weight, dout = _as_rows(y), _as_rows(z), weight.contiguous(), dout.contiguous()
    tiles, shape = _shape(len(y), width)
    aligned = math.gcd(y.stride(0), z.stride(0), 16)
    programs = min(tiles, PROGRAMS)
    partial = torch.empty((programs, channels), dtype=torch.float32, device=y.device)
    with on_device(y):
        _gated_backward_kernel[(programs, groups)](
            y, z, weight, dout, dy, dz, partial,
            len(y), width, channels, tiles,
            y.stride(0) // aligned, z.stride(0) // aligned, eps, **shape, ALIGNED=aligned,
        )  # fmt: skip
    return dy, dz, partial.sum(0)


def _fake_gated_backward(y, z, weight, dout, groups, eps):
    dweight = weight.new_empty(weight.shape, dtype=torch.float32)
    return y.new_empty(y.shape), z.new_empty(z.shape), dweight


def _save_gated(ctx, inputs, output):
    y, z, weight, ctx.groups, ctx.eps = inputs
    ctx.save_for_backward(y, z, weight)


def _gated_gradients(ctx, backward, dout):
    y, z, weight = ctx.saved_tensors
    dy, dz, dweight = backward(y, z, weight, dout, ctx.groups, ctx.eps)
    return dy, dz, dweight.to(weight.dtype), None, None


_gated_recorded = with_gradient(
    "remamba::gated_rms_norm", _gated_forward, _gated_backward,
    fake=_fake_gated, fake_backward=_fake_gated_backward,
    save=_save_gated, gradients=_gated_gradients,
)  # fmt: skip
