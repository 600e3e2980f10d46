"""causal_conv in Triton, forward and backward.

A program owns a block of channels and a chunk of rows. It walks down the rows with the last w-1
inputs in registers, so that each input is read once, and loads the next rows while it computes.
The chunk at the top also writes the new window.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from remamba.ops.backend import limited
from remamba.ops.device import on_device, processors
from remamba.ops.precision import beyond_float32
from remamba.ops.recording import is_recorded, with_gradient
from remamba.ops.time_step.triton_softplus import sigmoid
from remamba.ops.triton_launch import launched

BYTES = 256
"""Of a row that one program reads: 8 bytes a lane of its one warp."""
FORWARD, BACKWARD = (4, 28), (4, 12)
"""Rows loaded at once, and how many programs fit a multiprocessor at once by their registers."""
LEAST = 16
"""Rows of a program, at least. In each, WIDTH - 1 rows are read twice."""
MANY = 96
"""Rows of a program where there are far more programs than fit at once."""
SUMS = (32, 64)
"""Chunks and channels that a program adds up at once."""

# x's strides come divided by ALIGNED: triton itself would only see multiples of 16, and read the
# rows of mamba2-130m entry by entry


@triton.jit
def _load_behind(x, window, position, x_l, window_l, e, channels, WIDTH: tl.constexpr):
    """Row `position` of x behind its window, (BLOCK,): a negative one lies in the window."""
    mask = e < tl.where(position >= 0, channels, 0)
    v = tl.load(x + position * x_l, mask=mask, other=0.0).to(tl.float32)
    if window is not None:
        mask = e < tl.where(position < 0, channels, 0)
        old = tl.load(window + (position + WIDTH - 1) * window_l, mask=mask, other=0.0)
        v += old.to(tl.float32)
    return v


@triton.jit
def _load_rows(x, position, last, row, e, channels, UNROLL: tl.constexpr):
    """UNROLL rows of x as they are stored, zeros from row `last` on."""
    rows = ()
    for r in tl.static_range(UNROLL):
        mask = e < tl.where(position + r < last, channels, 0)
        rows += (tl.load(x + (position + r) * row, mask=mask, other=0.0),)
    return rows


@triton.jit
def _place(chunks, channels, BLOCK: tl.constexpr):
    """A program's chunk, and its row of the batch, in 64 bits; its channels (BLOCK,)."""
    blocks = tl.cdiv(channels, BLOCK)
    chunk = (tl.program_id(0) // blocks % chunks).to(tl.int64)
    row = (tl.program_id(0) // blocks // chunks).to(tl.int64)
    return chunk, row, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _end(lengths, row, length):
    """Where a row of the batch ends, in 64 bits."""
    end = length.to(tl.int64)
    if lengths is not None:
        end = tl.minimum(tl.maximum(tl.load(lengths + row).to(tl.int64), 0), end)
    return end


@triton.jit
def _filter(
    weight, bias, e, channels, weight_e, weight_w, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """WIDTH taps (BLOCK,), and the bias or zeros."""
    taps = ()
    for j in tl.static_range(WIDTH):
        tap = tl.load(weight + e * weight_e + j * weight_w, mask=e < channels, other=0.0)
        taps += (tap.to(tl.float32),)
    start = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        start += tl.load(bias + e, mask=e < channels, other=0.0).to(tl.float32)
    return taps, start


@triton.jit
def _rows_before(x, window, first, x_l, window_l, e, channels, WIDTH: tl.constexpr):
    """The WIDTH - 1 rows of x before row `first`, behind its window."""
    rows = ()
    for j in tl.static_range(WIDTH - 1):
        position = first + (j - WIDTH + 1)
        rows += (_load_behind(x, window, position, x_l, window_l, e, channels, WIDTH),)
    return rows


@launched
@triton.jit(do_not_specialize=["length", "chunks", "chunk_rows"])
def _forward_kernel(
    x, weight, bias, window, lengths, y, new_window,
    length, channels, chunks, chunk_rows, x_b, x_l, weight_e, weight_w, window_b, window_l,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    SILU: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    chunk, row, e = _place(chunks, channels, BLOCK)
    is_channel = e < channels
    x_l *= ALIGNED
    x += row * x_b * ALIGNED + e
    if window is not None:
        window += row * window_b + e
    y += row * length * channels + e
    new_window += row * (WIDTH - 1) * channels + e

    if chunk == 0:
        end = _end(lengths, row, length)
        for j in tl.static_range(WIDTH - 1):
            v = _load_behind(x, window, end + (j - WIDTH + 1), x_l, window_l, e, channels, WIDTH)
            tl.store(new_window + j * channels, v, mask=is_channel)

    taps, start = _filter(weight, bias, e, channels, weight_e, weight_w, WIDTH, BLOCK)
    first = chunk * chunk_rows
    recent = _rows_before(x, window, first, x_l, window_l, e, channels, WIDTH)
    # the next rows are under way while these are computed
    last = tl.minimum(first + chunk_rows, length)
    ahead = _load_rows(x, first, last, x_l, e, channels, UNROLL)
    for t in range(first, first + chunk_rows, UNROLL):
        rows = recent
        for r in tl.static_range(UNROLL):
            rows += (ahead[r].to(tl.float32),)
        ahead = _load_rows(x, t + UNROLL, last, x_l, e, channels, UNROLL)
        for r in tl.static_range(UNROLL):
            v = start
            for j in tl.static_range(WIDTH):
                v += taps[j] * rows[r + j]
            if SILU:
                v *= sigmoid(v)
            tl.store(y + (t + r) * channels, v, mask=e < tl.where(t + r < length, channels, 0))
        recent = rows[UNROLL:]


@launched
@triton.jit(do_not_specialize=["length", "chunks", "chunk_rows"])
def _backward_kernel(
    x, weight, bias, window, lengths, dy, dnew, dx, dwindow, partial,
    length, channels, chunks, chunk_rows, x_b, x_l, weight_e, weight_w, window_b, window_l,
    dy_b, dy_l,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    SILU: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """At step t the gradient before silu of row t is known, and so dx of row t - (WIDTH - 1)."""
    chunk, row, e = _place(chunks, channels, BLOCK)
    is_channel = e < channels
    x_l *= ALIGNED
    x += row * x_b * ALIGNED + e
    if window is not None:
        window += row * window_b + e
    dy += row * dy_b + e
    dx += row * length * channels + e
    if dwindow is not None:
        dwindow += row * (WIDTH - 1) * channels + e
    end = _end(lengths, row, length)
    if dnew is not None:
        dnew += row * (WIDTH - 1) * channels + e

    taps, start = _filter(weight, bias, e, channels, weight_e, weight_w, WIDTH, BLOCK)
    dtaps = ()
    for _ in tl.static_range(WIDTH + 1):
        dtaps += (tl.zeros((BLOCK,), tl.float32),)

    first = chunk * chunk_rows
    last = tl.minimum(first + chunk_rows, length)
    recent = _rows_before(x, window, first, x_l, window_l, e, channels, WIDTH)
    drecent = ()
    for _ in tl.static_range(WIDTH - 1):
        drecent += (tl.zeros((BLOCK,), tl.float32),)
    x_ahead = _load_rows(x, first, last, x_l, e, channels, UNROLL)
    dy_ahead = _load_rows(dy, first, last, dy_l, e, channels, UNROLL)
    for t in range(first, first + chunk_rows, UNROLL):
        rows, drows, dys = recent, drecent, dy_ahead
        for r in tl.static_range(UNROLL):
            rows += (x_ahead[r].to(tl.float32),)
        x_ahead = _load_rows(x, t + UNROLL, last, x_l, e, channels, UNROLL)
        dy_ahead = _load_rows(dy, t + UNROLL, last, dy_l, e, channels, UNROLL)
        for r in tl.static_range(UNROLL):
            d = _before_silu(dys[r], rows[r : r + WIDTH], taps, start, WIDTH, SILU)
            drows += (d,)
            sums = ()
            for j in tl.static_range(WIDTH):
                sums += (dtaps[j] + d * rows[r + j],)
            sums += (dtaps[WIDTH] + d,)
            dtaps = sums
            p = t + r - (WIDTH - 1)
            v = _of_row(drows[r : r + WIDTH], taps, dnew, p, end, e, channels, WIDTH)
            is_own = (p >= first) & (p < last)
            tl.store(dx + p * channels, v, mask=e < tl.where(is_own, channels, 0))
            if dwindow is not None:
                tl.store(dwindow + (t + r) * channels, v, mask=e < tl.where(p < 0, channels, 0))
        recent, drecent = rows[UNROLL:], drows[UNROLL:]

    # the last rows of the chunk also reach the outputs of the next
    t = first + chunk_rows
    stop = tl.minimum(t + WIDTH - 1, length)
    rows, drows = recent, drecent
    xs = _load_rows(x, t, stop, x_l, e, channels, WIDTH - 1)
    dys = _load_rows(dy, t, stop, dy_l, e, channels, WIDTH - 1)
    for r in tl.static_range(WIDTH - 1):
        rows += (xs[r].to(tl.float32),)
        drows += (_before_silu(dys[r], rows[r : r + WIDTH], taps, start, WIDTH, SILU),)
        p = t + r - (WIDTH - 1)
        v = _of_row(drows[r : r + WIDTH], taps, dnew, p, end, e, channels, WIDTH)
        tl.store(dx + p * channels, v, mask=e < tl.where(p < last, channels, 0))

    partial += (row * chunks + chunk) * (WIDTH + 1) * channels + e
    for j in tl.static_range(WIDTH + 1):
        tl.store(partial + j * channels, dtaps[j], mask=is_channel)


@triton.jit
def _before_silu(dy, rows, taps, start, WIDTH: tl.constexpr, SILU: tl.constexpr):
    """The gradient before silu of the row that `rows`, the last WIDTH inputs, make."""
    d = dy.to(tl.float32)
    if SILU:
        v = start
        for j in tl.static_range(WIDTH):
            v += taps[j] * rows[j]
        gate = sigmoid(v)
        d *= gate + gate * (v - v * gate)
    return d


@triton.jit
def _of_row(drows, taps, dnew, p, end, e, channels, WIDTH: tl.constexpr):
    """dx of row p, of the gradients before silu of the WIDTH rows that it reaches."""
    v = taps[WIDTH - 1] * drows[0]
    for j in tl.static_range(1, WIDTH):
        v += taps[WIDTH - 1 - j] * drows[j]
    if dnew is not None:
        slot = p - end + (WIDTH - 1)
        mask = e < tl.where((slot >= 0) & (slot < WIDTH - 1), channels, 0)
        v += tl.load(dnew + slot * channels, mask=mask, other=0.0).to(tl.float32)
    return v


@launched
@triton.jit(do_not_specialize=["parts"])
def _sums_kernel(
    partial, dweight, dbias, parts, channels,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program adds one tap, or the bias, of a block of channels over all chunks of all rows."""
    j = tl.program_id(1)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in range(0, parts, ROWS):
        row = (i + part).to(tl.int64)
        place = (row * (WIDTH + 1) + j)[:, None] * channels + e[None, :]
        mask = (row < parts)[:, None] & (e < channels)[None, :]
        sums += tl.load(partial + place, mask=mask, other=0.0)
    v = tl.sum(sums, axis=0)
    if j < WIDTH:
        tl.store(dweight + e * WIDTH + j, v, mask=e < channels)
    elif dbias is not None:
        tl.store(dbias + e, v, mask=e < channels)


def _fits(x, weight, *others, **options) -> str:
    if weight.shape[1] == 1:
        return "a filter of one step, without a window"
    return beyond_float32(x)


@limited(_fits)
def causal_conv_triton(x, weight, bias=None, *, lengths=None, window=None, silu=True):
    """causal_conv in one launch; x may be a view whose rows are apart. Not for l = 0."""
    if is_recorded(x, weight, bias, window):
        return _recorded(x, weight, bias, lengths, window, silu)
    return _forward(x, weight, bias, lengths, window, silu)


@functools.lru_cache(maxsize=1024)
def _shape(
    b: int, l: int, e: int, size: int, unroll: int, resident: int
) -> tuple[int, int, int, int]:
    """(programs, chunks of a row, rows of a chunk, channels of a block).

    All programs are to run at once: the last of a second wave would leave the GPU half idle.

    Args:
        size: bytes a value.
        resident: programs that fit on the GPU at once.
    """
    block = BYTES // size
    lanes = b * triton.cdiv(e, block)
    chunks = resident // lanes
    chunk = MANY if chunks < 4 else max(LEAST, triton.cdiv(l, chunks))
    chunk = triton.cdiv(chunk, unroll) * unroll
    chunks = triton.cdiv(l, chunk)
    return lanes * chunks, chunks, chunk, block


def _prepared(x, bias, lengths, window):
    """The arguments as the kernels read them: channels side by side, lengths on the device."""
    if bias is not None:
        bias = bias.contiguous()
    if x.stride(2) != 1:
        x = x.contiguous()
    if window is not None and (window.stride(2) != 1 or window.dtype != x.dtype):
        window = window.to(x.dtype).contiguous()
    if lengths is not None and (lengths.device != x.device or not lengths.is_contiguous()):
        lengths = lengths.to(x.device).contiguous()
    return x, bias, lengths, window


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lengths: torch.Tensor | None,
    window: torch.Tensor | None,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, bias, lengths, window = _prepared(x, bias, lengths, window)
    b, l, e = x.shape
    width = weight.shape[1]
    y = torch.empty((b, l, e), dtype=x.dtype, device=x.device)
    new_window = torch.empty((b, width - 1, e), dtype=x.dtype, device=x.device)
    unroll, fit = FORWARD
    shape = b, l, e, x.element_size(), unroll, fit * processors(x.device)
    programs, chunks, chunk, block = _shape(*shape)
    aligned = math.gcd(x.stride(0), x.stride(1), 16)
    window_b, window_l = (0, 0) if window is None else (window.stride(0), window.stride(1))
    with on_device(x):
        _forward_kernel[(programs,)](
            x, weight, bias, window, lengths, y, new_window,
            l, e, chunks, chunk, x.stride(0) // aligned, x.stride(1) // aligned, weight.stride(0),
            weight.stride(1), window_b, window_l,
            WIDTH=width, BLOCK=block, UNROLL=unroll, SILU=silu,
            ALIGNED=aligned,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y, new_window


def _fake(x, weight, bias, lengths, window, silu):
    b, l, e = x.shape
    return x.new_empty(b, l, e), x.new_empty(b, weight.shape[1] - 1, e)


def _backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lengths: torch.Tensor | None,
    window: torch.Tensor | None,
    dy: torch.Tensor,
    dnew: torch.Tensor | None,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx (b, l, e), dweight (e, w), dbias and dwindow, which are empty for what was None."""
    x, bias, lengths, narrow = _prepared(x, bias, lengths, window)
    if dy.stride(2) != 1:
        dy = dy.contiguous()
    if dnew is not None:
        dnew = dnew.contiguous()
    b, l, e = x.shape
    width = weight.shape[1]
    unroll, fit = BACKWARD
    shape = b, l, e, x.element_size(), unroll, fit * processors(x.device)
    programs, chunks, chunk, block = _shape(*shape)
    aligned = math.gcd(x.stride(0), x.stride(1), 16)
    dx = torch.empty((b, l, e), dtype=x.dtype, device=x.device)
    slots, dtype = (0, x.dtype) if window is None else (width - 1, window.dtype)
    dwindow = torch.empty((b, slots, e), dtype=dtype, device=x.device)
    partial = torch.empty((b * chunks, width + 1, e), dtype=torch.float32, device=x.device)
    window_b, window_l = (0, 0) if narrow is None else (narrow.stride(0), narrow.stride(1))
    dweight = torch.empty((e, width), dtype=weight.dtype, device=x.device)
    dbias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    with on_device(x):
        _backward_kernel[(programs,)](
            x, weight, bias, narrow, lengths, dy, dnew, dx, dwindow if slots else None, partial,
            l, e, chunks, chunk, x.stride(0) // aligned, x.stride(1) // aligned, weight.stride(0),
            weight.stride(1), window_b, window_l, dy.stride(0), dy.stride(1),
            WIDTH=width, BLOCK=block, UNROLL=unroll, SILU=silu,
            ALIGNED=aligned,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        rows, columns = SUMS
        _sums_kernel[(triton.cdiv(e, columns), width + 1)](
            partial, dweight, dbias if bias is not None else None, b * chunks, e,
            WIDTH=width, ROWS=rows, BLOCK=columns, num_warps=4,
        )  # fmt: skip
    return dx, dweight, dbias, dwindow


def _fake_backward(x, weight, bias, lengths, window, dy, dnew, silu):
    b, l, e = x.shape
    dwindow = x.new_empty(b, 0, e) if window is None else window.new_empty(window.shape)
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(b, l, e), weight.new_empty(weight.shape), dbias, dwindow


def _save(ctx, inputs, output):
    x, weight, bias, lengths, window, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, lengths, window)
    ctx.set_materialize_grads(False)


def _gradients(ctx, backward, dy, dnew):
    x, weight, bias, lengths, window = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    grads = backward(x, weight, bias, lengths, window, dy, dnew, ctx.silu)
    dx, dweight, dbias, dwindow = grads
    dbias = None if bias is None else dbias
    return dx, dweight, dbias, None, None if window is None else dwindow, None


_recorded = with_gradient(
    "remamba::causal_conv", _forward, _backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip
