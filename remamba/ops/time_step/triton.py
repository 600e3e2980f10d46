"""adapt_dt and decay_rate in Triton.

adapt_dt in place reads and writes only the kept rows, which are few.
"""

import torch
import triton
import triton.language as tl

from remamba.ops.backend import limited
from remamba.ops.device import on_device
from remamba.ops.precision import beyond_float32
from remamba.ops.recording import GRADIENT, is_recorded, with_gradient
from remamba.ops.triton_launch import launched

BLOCK = 1024
"""Channels of adapt_dt, and entries of decay_rate, at once."""
TILE = (64, 128)
"""Rows and channels of a program of adapt_dt's backward kernel."""


@launched
@triton.jit(do_not_specialize=["length"])
def _forward_kernel(
    dt, selected, theta, alpha, bias, out,
    length, channels, dt_b, dt_l, selected_b, selected_l, alpha_b, alpha_l,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program is one position; out None: dt is changed in place."""
    row = tl.program_id(0).to(tl.int64)
    batch, t = row // length, row % length
    is_selected = tl.load(selected + batch * selected_b + t * selected_l) != 0
    dt += batch * dt_b + t * dt_l
    if is_selected:
        for start in range(0, channels, BLOCK):
            channel = start + tl.arange(0, BLOCK)
            mask = channel < channels
            v = tl.load(dt + channel, mask=mask, other=0.0).to(tl.float32)
            change = tl.load(theta + channel, mask=mask, other=0.0).to(tl.float32)
            if alpha is not None:
                factor = tl.load(alpha + batch * alpha_b + t * alpha_l).to(tl.float32) - 1.0
                projected = v
                if bias is not None:
                    projected -= tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
                change += factor * projected
            if out is None:
                tl.store(dt + channel, v + change, mask=mask)
            else:
                tl.store(out + row * channels + channel, v + change, mask=mask)
    elif out is not None:
        for start in range(0, channels, BLOCK):
            channel = start + tl.arange(0, BLOCK)
            mask = channel < channels
            v = tl.load(dt + channel, mask=mask, other=0.0)
            tl.store(out + row * channels + channel, v, mask=mask)


@launched
@triton.jit(do_not_specialize=["rows", "length"])
def _backward_kernel(
    dt, selected, alpha, bias, dout, ddt, dalpha, dtheta, dbias,
    rows, length, channels, dt_b, dt_l, selected_b, selected_l, alpha_b, alpha_l,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over a block of channels are (rows, blocks), over a tile of rows (tiles, channels)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_row, is_channel = row < rows, channel < channels
    batch, t = row // length, row % length
    is_selected = tl.load(selected + batch * selected_b + t * selected_l, mask=is_row, other=0) != 0
    mask = is_row[:, None] & is_channel[None, :]
    place = row[:, None] * channels + channel[None, :]
    kept = tl.where(is_selected, 1.0, 0.0)[:, None]
    d = tl.load(dout + place, mask=mask, other=0.0).to(tl.float32)
    to = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(dtheta + to, tl.sum(d * kept, axis=0), mask=is_channel)
    if alpha is not None:
        a = tl.load(alpha + batch * alpha_b + t * alpha_l, mask=is_row & is_selected, other=1.0)
        a = a.to(tl.float32)[:, None]
        of_kept = (is_row & is_selected)[:, None] & is_channel[None, :]
        at = dt + batch[:, None] * dt_b + t[:, None] * dt_l + channel[None, :]
        projected = tl.load(at, mask=of_kept, other=0.0).to(tl.float32)
        if bias is not None:
            shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
            projected -= shift[None, :]
            tl.store(dbias + to, tl.sum(d * kept * (1.0 - a), axis=0), mask=is_channel)
        sums = tl.sum(d * kept * projected, axis=1)
        tl.store(dalpha + row * tl.num_programs(1) + tl.program_id(1), sums, mask=is_row)
        d *= a
    tl.store(ddt + place, d, mask=mask)


def _adapt_dt_fits(dt, *others, **options) -> str:
    return beyond_float32(dt)


@limited(_adapt_dt_fits)
def adapt_dt_triton(dt, selected, theta, *, alpha=None, bias=None):
    """adapt_dt in one launch; in place where nothing is differentiated."""
    if is_recorded(dt, theta, alpha, bias):
        return _recorded(dt, selected, theta, alpha, bias)
    if dt.stride(2) != 1:
        dt = dt.contiguous()
    _launch(dt, selected, theta, alpha, bias, None)
    return dt


def _strides(alpha: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if alpha is None else alpha.stride()


def _launch(dt, selected, theta, alpha, bias, out) -> None:
    b, l, c = dt.shape
    with on_device(dt):
        _forward_kernel[(b * l,)](
            dt, selected, theta, alpha, bias, out,
            l, c, dt.stride(0), dt.stride(1), *selected.stride(), *_strides(alpha),
            BLOCK=min(BLOCK, triton.next_power_of_2(c)), num_warps=4,
        )  # fmt: skip


def _adapt_dt(
    dt: torch.Tensor,
    selected: torch.Tensor,
    theta: torch.Tensor,
    alpha: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    dt = dt if dt.stride(2) == 1 else dt.contiguous()
    out = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    _launch(dt, selected, theta, alpha, bias, out)
    return out


def _fake(dt, selected, theta, alpha, bias):
    return dt.new_empty(dt.shape)


def _adapt_dt_backward(
    dt: torch.Tensor,
    selected: torch.Tensor,
    alpha: torch.Tensor | None,
    bias: torch.Tensor | None,
    dout: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ddt (b, l, c); float32 dtheta (c,), dalpha (b, l), dbias (c,), empty what was None."""
    b, l, c = dt.shape
    dt, dout = dt if dt.stride(2) == 1 else dt.contiguous(), dout.contiguous()
    rows, block = TILE
    tiles, blocks = triton.cdiv(b * l, rows), triton.cdiv(c, block)
    has_bias = alpha is not None and bias is not None
    sums = {"dtype": torch.float32, "device": dt.device}
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    dtheta = torch.empty((tiles, c), **sums)
    dalpha = torch.empty((b, 0 if alpha is None else l, blocks), **sums)
    dbias = torch.empty((tiles, c if has_bias else 0), **sums)
    with on_device(dt):
        _backward_kernel[(tiles, blocks)](
            dt, selected, alpha, bias if has_bias else None, dout, ddt, dalpha, dtheta, dbias,
            b * l, l, c, dt.stride(0), dt.stride(1), *selected.stride(), *_strides(alpha),
            ROWS=rows, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return ddt, dtheta.sum(0), dalpha.sum(2), dbias.sum(0)


def _fake_backward(dt, selected, alpha, bias, dout):
    b, l, c = dt.shape
    return (
        dt.new_empty(dt.shape),
        dt.new_empty(c, dtype=torch.float32),
        dt.new_empty(b, 0 if alpha is None else l, dtype=torch.float32),
        dt.new_empty(0 if alpha is None or bias is None else c, dtype=torch.float32),
    )


def _save(ctx, inputs, output):
    dt, selected, theta, alpha, bias = inputs
    ctx.theta_dtype = theta.dtype
    ctx.save_for_backward(dt, selected, alpha, bias)


def _gradients(ctx, backward, dout):
    dt, selected, alpha, bias = ctx.saved_tensors
    ddt, dtheta, dalpha, dbias = backward(dt, selected, alpha, bias, dout)
    return (
        ddt,
        None,
        dtheta.to(ctx.theta_dtype),
        None if alpha is None else dalpha.to(alpha.dtype),
        None if alpha is None or bias is None else dbias.to(bias.dtype),
    )


_recorded = with_gradient(
    "remamba::adapt_dt", _adapt_dt, _adapt_dt_backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip


@launched
@triton.jit
def _decay_rate_kernel(A_log, A, entries, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(A_log + i, mask=i < entries, other=0.0).to(tl.float32)
    tl.store(A + i, -tl.exp(v), mask=i < entries)


def _decay_rate_fits(A_log: torch.Tensor) -> str:
    return GRADIENT if is_recorded(A_log) else beyond_float32(A_log)


@limited(_decay_rate_fits)
def decay_rate_triton(A_log: torch.Tensor) -> torch.Tensor:
    """decay_rate in one launch instead of three."""
    A_log = A_log.contiguous()
    A = torch.empty(A_log.shape, dtype=torch.float32, device=A_log.device)
    entries = A_log.numel()
    with on_device(A_log):
        _decay_rate_kernel[(-(-entries // BLOCK),)](A_log, A, entries, BLOCK=BLOCK, num_warps=4)
    return A
