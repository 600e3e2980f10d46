"""One decode step of either scan as a kernel: the public ops, and the forms inside a block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remamba.ops.backend import limited
from remamba.ops.decode_layer.triton_few_rows import silu
from remamba.ops.decode_layer.weights import MOST_STATE
from remamba.ops.device import on_device
from remamba.ops.recording import GRADIENT, is_recorded
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.triton_softplus import softplus

BLOCK_E = 16
"""Channels of a program of the selective step."""
BLOCK_P = 16
"""Channels of a head that a program of the SSD step takes."""


def _fits(inputs: ScanInputs, **options: object) -> str:
    state = inputs.initial_state
    assert state is not None
    if state.dtype != torch.float32:
        return "states not of float32"
    if state.shape[-1] > MOST_STATE:
        return f"more than {MOST_STATE} states a channel"
    return GRADIENT if is_recorded(*inputs) else ""


@limited(_fits)
def selective_state_update_triton(inputs: ScanInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """selective_state_update in one launch."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, state = inputs
    (b, e), n = x.shape, A.shape[1]
    x, dt, B, C, A = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, dt, B, C, A))
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    D, dt_bias, dt_scale = map(_contiguous, (D, dt_bias, dt_scale))
    y, new = _like(x), _like(state)
    with on_device(x):
        _selective_update[(triton.cdiv(e, BLOCK_E), b)](
            x, dt, A, B, C, D, z, dt_bias, dt_scale, state.contiguous(), new, y, e, n,
            x.stride(0), dt.stride(0), A.stride(0), B.stride(0), C.stride(0),
            0 if z is None else z.stride(0),
            IS_LOG=False, BLOCK_E=BLOCK_E, BLOCK_N=triton.next_power_of_2(n), num_warps=2,
        )  # fmt: skip
    return y, new


@limited(_fits)
def ssd_state_update_triton(
    inputs: ScanInputs, *, dt_limit: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd_state_update in one launch."""
    x, dt, A, B, C, D, _, dt_bias, dt_scale, state = inputs
    x, B, C = (t if t[0].is_contiguous() else t.contiguous() for t in (x, B, C))
    dt = dt if dt.stride(1) == 1 else dt.contiguous()
    A, D, dt_bias, dt_scale = map(_contiguous, (A, D, dt_bias, dt_scale))
    y, new = _like(x), _like(state)
    with on_device(x):
        _ssd(x, dt, None, A, B, C, D, dt_bias, dt_limit, dt_scale, state.contiguous(), new, y)
    return y, new


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def selective_step(
    parts: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A_log: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor,
    y: torch.Tensor,
    eps: float | None,
) -> None:
    """A block's selective step from x_proj's split sum on, dt_proj included; state moves in place.

    For one row, or few: each pays for the sum and for dt_proj anew.

    parts (splits, b, r + 2n) float32; x, z (b, e); dt_weight (e, r); dt_bias, D (e,); A_log (e, n);
    state (b, e, n) float32; y (b, e) is written. With eps, dt, B and C are RMS-normed
    (Falcon-Mamba).
    """
    splits, b, _ = parts.shape
    e, n = A_log.shape
    r = dt_weight.shape[1]
    block_r = triton.next_power_of_2(r)
    block_e = max(4, min(BLOCK_E, 4096 // block_r))
    blocks = triton.cdiv(e, block_e)
    _selective_step[(blocks, b)](
        parts, x, z, dt_weight, dt_bias, A_log, D, state, y, b, e, r, n, splits, eps or 0.0,
        x.stride(0), z.stride(0), y.stride(0),
        NORMED=eps is not None, BLOCK_E=block_e, BLOCK_R=block_r,
        BLOCK_N=triton.next_power_of_2(n), BLOCK_S=triton.next_power_of_2(splits),
        num_warps=4,
    )  # fmt: skip


def selective_step_of_rows(
    x: torch.Tensor,
    dt: torch.Tensor,
    z: torch.Tensor,
    A_log: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    state: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """A block's selective step and gate behind dt_proj; state moves in place.

    x, z, dt (b, e), dt with its bias; A_log (e, n); B, C (b, n); D (e,); state (b, e, n) float32;
    y (b, e) is written.
    """
    (b, e), n = x.shape, A_log.shape[1]
    _selective_update[(triton.cdiv(e, BLOCK_E), b)](
        x, dt, A_log, B, C, D, z, None, None, state, state, y, e, n,
        x.stride(0), dt.stride(0), n, B.stride(0), C.stride(0), z.stride(0),
        IS_LOG=True, BLOCK_E=BLOCK_E, BLOCK_N=triton.next_power_of_2(n), num_warps=2,
    )  # fmt: skip


def ssd_step(x, dt, z, A_log, B, C, D, dt_bias, dt_limit, state, y) -> None:
    """A block's SSD step, and its gate unless z is None; state moves in place, y is written.

    Shapes as in ssd_state_update, but x, y, z (b, h * p). The gated y is rounded to the model's
    dtype before its norm, which a module rounds once, behind it.
    """
    _ssd(x, dt, z, A_log, B, C, D, dt_bias, dt_limit, None, state, state, y, is_log=True)


def _ssd(x, dt, z, A, B, C, D, dt_bias, dt_limit, dt_scale, state, new, y, *, is_log=False) -> None:
    b, h, p, n = state.shape
    _ssd_step[(triton.cdiv(p, BLOCK_P), h, b)](
        x, dt, z, A, B, C, D, dt_bias, dt_scale, state, new, y, h, p, n, h // B.shape[1],
        float(dt_limit[0]), float(dt_limit[1]), x.stride(0), dt.stride(0),
        0 if z is None else z.stride(0), B.stride(0), C.stride(0), y.stride(0),
        IS_LOG=is_log, BLOCK_P=BLOCK_P, BLOCK_N=triton.next_power_of_2(n),
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _advance(state, u, dt, A, B):
    """The state after one token: s exp(dt A) + dt u B; u, dt broadcast along its channels."""
    return state * tl.exp(dt * A) + (dt * u) * B


@triton.jit
def _selective_update(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, dt_scale_ptr, state_ptr,
    new_ptr, y_ptr, e, n, x_stride, dt_stride, A_stride, B_stride, C_stride, z_stride,
    IS_LOG: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """IS_LOG: A is given as A_log."""
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    column = tl.arange(0, BLOCK_N)
    real, inside = channel < e, column < n
    x = tl.load(x_ptr + row * x_stride + channel, real, 0.0).to(tl.float32)
    dt = tl.load(dt_ptr + row * dt_stride + channel, real, 0.0).to(tl.float32)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + channel, real, 0.0).to(tl.float32)
    dt, _ = softplus(dt)
    if dt_scale_ptr is not None:
        dt *= tl.load(dt_scale_ptr + row).to(tl.float32)
    both = real[:, None] & inside[None, :]
    A = tl.load(A_ptr + channel[:, None] * A_stride + column[None, :], both, 0.0).to(tl.float32)
    if IS_LOG:
        A = -tl.exp(A)
    B = tl.load(B_ptr + row * B_stride + column, inside, 0.0).to(tl.float32)
    C = tl.load(C_ptr + row * C_stride + column, inside, 0.0).to(tl.float32)
    place = (row * e + channel)[:, None] * n + column[None, :]
    state = tl.load(state_ptr + place, both, 0.0)
    state = _advance(state, x[:, None], dt[:, None], A, B[None, :])
    tl.store(new_ptr + place, state, both)
    y = tl.sum(state * C[None, :], axis=1)
    if D_ptr is not None:
        y += x * tl.load(D_ptr + channel, real, 0.0).to(tl.float32)
    if z_ptr is not None:
        y *= silu(tl.load(z_ptr + row * z_stride + channel, real, 0.0).to(tl.float32))
    tl.store(y_ptr + row * e + channel, y, real)


@triton.jit
def _part(
    parts_ptr, row, b, width, splits, start, size, eps, dtype: tl.constexpr,
    NORMED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Columns [start, start + size) of x_proj's output, rounded as the module stores them."""
    split, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK)
    place = (split[:, None] * b + row) * width + start + column[None, :]
    found = tl.load(parts_ptr + place, (split < splits)[:, None] & (column < size)[None, :], 0.0)
    found = tl.sum(found, axis=0).to(dtype).to(tl.float32)
    if NORMED:
        found *= tl.rsqrt(tl.sum(found * found, axis=0) / size + eps)
        found = found.to(dtype).to(tl.float32)
    return found


@triton.jit
def _selective_step(
    parts_ptr, x_ptr, z_ptr, dt_weight_ptr, dt_bias_ptr, A_log_ptr, D_ptr, state_ptr, y_ptr,
    b, e, r, n, splits, eps, x_stride, z_stride, y_stride,
    NORMED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = dt_weight_ptr.dtype.element_ty
    channel = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    column, rank = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    real, inside = channel < e, column < n
    both = real[:, None] & inside[None, :]
    # weights are the same for all rows, and do not depend on the launch before
    ranked = real[:, None] & (rank < r)[None, :]
    weight = tl.load(dt_weight_ptr + channel[:, None] * r + rank[None, :], ranked, 0.0)
    A_log = tl.load(A_log_ptr + channel[:, None] * n + column[None, :], both, 0.0)
    A = -tl.exp(A_log.to(tl.float32))
    bias = tl.load(dt_bias_ptr + channel, real, 0.0).to(tl.float32)
    D = tl.load(D_ptr + channel, real, 0.0).to(tl.float32)
    row = tl.program_id(1).to(tl.int64)
    place = (row * e + channel)[:, None] * n + column[None, :]
    state = tl.load(state_ptr + place, both, 0.0)
    width = r + 2 * n
    low = _part(parts_ptr, row, b, width, splits, 0, r, eps, dtype, NORMED, BLOCK_R, BLOCK_S)
    B = _part(parts_ptr, row, b, width, splits, r, n, eps, dtype, NORMED, BLOCK_N, BLOCK_S)
    C = _part(parts_ptr, row, b, width, splits, r + n, n, eps, dtype, NORMED, BLOCK_N, BLOCK_S)
    dt = tl.sum(weight.to(tl.float32) * low[None, :], axis=1) + bias
    dt, _ = softplus(dt.to(dtype).to(tl.float32))
    x = tl.load(x_ptr + row * x_stride + channel, real, 0.0).to(tl.float32)
    z = tl.load(z_ptr + row * z_stride + channel, real, 0.0).to(tl.float32)
    state = _advance(state, x[:, None], dt[:, None], A, B[None, :])
    tl.store(state_ptr + place, state, both)
    y = (tl.sum(state * C[None, :], axis=1) + x * D) * silu(z)
    tl.store(y_ptr + row * y_stride + channel, y, real)


@triton.jit
def _ssd_step(
    x_ptr, dt_ptr, z_ptr, A_ptr, B_ptr, C_ptr, D_ptr, dt_bias_ptr, dt_scale_ptr, state_ptr,
    new_ptr, y_ptr, h, p, n, heads_per_group, low, high,
    x_stride, dt_stride, z_stride, B_stride, C_stride, y_stride,
    IS_LOG: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """IS_LOG: A is given as A_log. With a gate z, y * silu(z) is written."""
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    column = tl.arange(0, BLOCK_N)
    real, inside = channel < p, column < n
    A = tl.load(A_ptr + head).to(tl.float32)
    if IS_LOG:
        A = -tl.exp(A)
    dt = tl.load(dt_ptr + row * dt_stride + head).to(tl.float32)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head).to(tl.float32)
    dt, _ = softplus(dt)
    dt = tl.maximum(dt, low, propagate_nan=tl.PropagateNan.ALL)
    dt = tl.minimum(dt, high, propagate_nan=tl.PropagateNan.ALL)
    if dt_scale_ptr is not None:
        dt *= tl.load(dt_scale_ptr + row).to(tl.float32)
    group = head // heads_per_group
    x = tl.load(x_ptr + row * x_stride + head * p + channel, real, 0.0).to(tl.float32)
    B = tl.load(B_ptr + row * B_stride + group * n + column, inside, 0.0).to(tl.float32)
    C = tl.load(C_ptr + row * C_stride + group * n + column, inside, 0.0).to(tl.float32)
    both = real[:, None] & inside[None, :]
    place = ((row * h + head) * p + channel)[:, None] * n + column[None, :]
    state = _advance(tl.load(state_ptr + place, both, 0.0), x[:, None], dt, A, B[None, :])
    tl.store(new_ptr + place, state, both)
    y = tl.sum(state * C[None, :], axis=1)
    if D_ptr is not None:
        y += x * tl.load(D_ptr + head).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + row * z_stride + head * p + channel, real, 0.0).to(tl.float32)
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32) * silu(z)
    tl.store(y_ptr + row * y_stride + head * p + channel, y, real)
