"""Mamba-2's scan in Triton, forward: the sequence in segments, a segment in chunks.

One program walks a head through a segment with the state in registers; a chunk of it is matrix
products (2405.21060 section 6). What each segment adds to the state is found by a walk of its own
first, so that segments run beside each other. The gradients are in triton_backward.py.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from remamba.ops.device import on_device, processors
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import LOG2_E
from remamba.ops.time_step.triton_softplus import INTERPRETED, softplus
from remamba.ops.triton_launch import launched

# programs that a multiprocessor of a GPU should find, and the least chunks worth a segment
PROGRAMS_A_PROCESSOR, MIN_CHUNKS, MAX_SEGMENTS = 6, 2, 16
# 2 ** LEAST_EXPONENT is 0 in float32, and sums of it over a chunk stay small
LEAST_EXPONENT = tl.constexpr(-160.0)
TRITON_DTYPES = {
    torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16
}  # fmt: skip


def product_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype in which x, B and C are multiplied."""
    first = tensors[0].dtype
    if all(t.dtype == first for t in tensors):
        return first
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors))


class Plan(NamedTuple):
    """How a call is cut: chunks of l, segments of chunks, and the blocks of p and n."""

    chunk: int
    chunks: int
    segment: int
    segments: int
    block_p: int
    blocks_p: int
    block_n: int
    num_warps: int
    dot: torch.dtype


def plan(x: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> Plan:
    """The cuts for these shapes, the same in forward and backward."""
    # under the interpreter as for a small GPU
    places = processors(x.device, 16) * PROGRAMS_A_PROCESSOR
    sizes = (*x.shape, B.shape[3])
    # a compiler's symbols are no keys
    cut = _known_cut if all(type(size) is int for size in sizes) else _cut
    return cut(*sizes, product_dtype(x, B, C), places)


def _cut(b: int, l: int, h: int, p: int, n: int, dot: torch.dtype, places: int) -> Plan:
    block_n = max(triton.next_power_of_2(n), 16)
    # exact float32 products hold their operands in registers: smaller blocks
    chunk, widest = (16, 16) if dot == torch.float32 else (64, 64)
    block_p = min(max(triton.next_power_of_2(p), 16), widest)
    chunks, blocks_p = triton.cdiv(l, chunk), triton.cdiv(p, block_p)
    segments = max(min(places // (b * h * blocks_p), chunks // MIN_CHUNKS, MAX_SEGMENTS), 1)
    segment = triton.cdiv(chunks, segments)
    num_warps = 8 if block_n > 128 or dot == torch.float32 else 4
    return Plan(
        chunk, chunks, segment, triton.cdiv(chunks, segment), block_p, blocks_p, block_n,
        num_warps, dot,
    )  # fmt: skip


_known_cut = functools.lru_cache(maxsize=1024)(_cut)


def forward(
    inputs: ScanInputs, dt_min: float, dt_max: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the final state, and of each segment but the last what it adds to the state and how much
    of the state passes it: (b, s - 1, h, p, n) and (b, s - 1, h), float32."""
    x, dt, A, B, C, D, _, dt_bias, dt_scale, initial_state = inputs
    b, l, h, p = x.shape
    n = B.shape[3]
    cut = plan(x, B, C)
    x, B, C = (rows_contiguous(t) for t in (x, B, C))
    A, D, dt_bias, initial_state = (dense(t) for t in (A, D, dt_bias, initial_state))
    y = torch.empty((b, l, h, p), dtype=x.dtype, device=x.device)
    final = torch.empty((b, h, p, n), dtype=torch.float32, device=x.device)
    with on_device(x):
        _, total, column = step_forward(cut, dt, A, dt_bias, dt_scale, dt_min, dt_max)
        added, passed = walk_segments(cut, x, B, total, column, reverse=False)
        ssd_fwd_kernel[(h * cut.blocks_p, cut.segments, b)](
            x, B, C, D, total, column, initial_state, added, passed, y, final,
            l, cut.chunks, cut.segment, cut.segments,
            x.stride(0), x.stride(2), B.stride(0), B.stride(2), C.stride(0), C.stride(2),
            h, p, n, h // B.shape[2], x.stride(1), B.stride(1), C.stride(1),
            cut.chunk, cut.block_p, cut.blocks_p, cut.block_n, TRITON_DTYPES[cut.dot],
            num_warps=cut.num_warps, num_stages=2,
        )  # fmt: skip
    return y, final, added, passed


def rows_contiguous(t: torch.Tensor) -> torch.Tensor:
    """t with its last axis dense: kernels take every other stride as it is."""
    return t if t.stride(-1) == 1 else t.contiguous()


def dense(t: torch.Tensor | None) -> torch.Tensor | None:
    """t without strides, for what kernels take as one block."""
    return None if t is None else t.contiguous()


def step_forward(cut, dt, A, dt_bias, dt_scale, dt_min, dt_max) -> tuple[torch.Tensor, ...]:
    """Three (b, h, chunks * chunk): the time step; total, the base-2 logarithm of what remains of
    the state, from each chunk's start; and total - log2(step), for what an input adds to it.

    Past the end of l no time passes. For float32 products the totals are float64: a difference of
    two large ones must keep the digits of a small decay.
    """
    b, l, h = dt.shape
    size = (b, h, cut.chunks * cut.chunk)
    exact = torch.float64 if cut.dot == torch.float32 else torch.float32
    step = torch.empty(size, dtype=torch.float32, device=dt.device)
    total, column = torch.empty((2, *size), dtype=exact, device=dt.device).unbind()
    heads = min(triton.next_power_of_2(h), 16)
    ssd_step_kernel[(cut.chunks, triton.cdiv(h, heads), b)](
        dt, dt_bias, dt_scale, A, step, total, column, l, h, cut.chunks, dt_min, dt_max,
        *dt.stride(), *((0, 0) if dt_scale is None else dt_scale.stride()),
        LOG2_E, cut.chunk, heads, num_warps=4,
    )  # fmt: skip
    return step, total, column


def walk_segments(cut, x, B, total, column, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What each segment adds to the state (b, s - 1, h, p, n), and the part of it that passes.

    Forward for all segments but the last, with x and B; in reverse, with the gradient of y as x
    and C as B, for all but the first what it adds to the gradient of the state before it.
    """
    b, l, h, p = x.shape
    n = B.shape[3]
    added = torch.empty((b, cut.segments - 1, h, p, n), dtype=torch.float32, device=x.device)
    passed = torch.empty((b, cut.segments - 1, h), dtype=torch.float32, device=x.device)
    if cut.segments > 1:
        ssd_walk_kernel[(h * cut.blocks_p, cut.segments - 1, b)](
            x, B, total, column, None, added, passed, None, None,
            l, cut.chunks, cut.segment, cut.segments,
            x.stride(0), x.stride(2), B.stride(0), B.stride(2),
            h, p, n, h // B.shape[2], x.stride(1), B.stride(1),
            cut.chunk, cut.block_p, cut.blocks_p, cut.block_n, TRITON_DTYPES[cut.dot],
            reverse, False, num_warps=cut.num_warps, num_stages=3,
        )  # fmt: skip
    return added, passed


@triton.jit
def operand(t, DOT: tl.constexpr):
    """t rounded to DOT, as a factor of a product."""
    t = t.to(DOT)
    # the interpreter multiplies bfloat16 numbers as if they were integers
    if INTERPRETED:
        t = t.to(tl.float32)
    return t


@launched
@triton.jit(do_not_specialize=["l", "chunks"])
def ssd_step_kernel(
    dt, dt_bias, dt_scale, A, step, total, column,
    l, h, chunks, dt_min, dt_max, dt_b, dt_l, dt_h, scale_b, scale_l,
    LOG2_E: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """step, total and column of CHUNK positions and HEADS heads."""
    chunk, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    is_head = head < h
    mask = (t < l)[:, None] & is_head[None, :]
    place = t.to(tl.int64)[:, None] * dt_l + head[None, :] * dt_h
    v = tl.load(dt + batch * dt_b + place, mask=mask, other=0.0).to(tl.float32)
    if dt_bias is not None:
        v += tl.load(dt_bias + head, mask=is_head, other=0.0).to(tl.float32)[None, :]
    v, _ = softplus(v)
    v = tl.minimum(tl.maximum(v, dt_min), dt_max)
    if dt_scale is not None:
        place = batch * scale_b + t.to(tl.int64) * scale_l
        v *= tl.load(dt_scale + place, mask=t < l, other=0.0).to(tl.float32)[:, None]
    v = tl.where(mask, v, 0.0)
    rate = tl.load(A + head, mask=is_head, other=0.0).to(tl.float32) * LOG2_E
    exponent = tl.maximum(v * rate[None, :], LEAST_EXPONENT).to(total.dtype.element_ty)
    sums = tl.cumsum(exponent, 0)
    out = (batch * h + head[None, :]) * chunks * CHUNK + t[:, None]
    mask = is_head[None, :] & (t[:, None] >= 0)
    tl.store(step + out, v, mask=mask)
    tl.store(total + out, sums, mask=mask)
    # no time, no input: 2 ** -inf of it
    given = tl.where(v > 0.0, tl.log2(tl.maximum(v, 1e-38)), float("-inf"))
    tl.store(column + out, sums - given.to(total.dtype.element_ty), mask=mask)


@triton.jit
def start_state(
    first, added, passed, head, segment, segments, h, p, n, pp, nn,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The state (BLOCK_P, BLOCK_N) that a segment of a head starts from, in the walk's direction.

    first is the state before all segments; head counts through the batch too.
    """
    place = pp[:, None] * n + nn[None, :]
    mask = (pp < p)[:, None] & (nn < n)[None, :]
    state = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    if first is not None:
        state += tl.load(first + head * p * n + place, mask=mask, other=0.0).to(tl.float32)
    batch, h_in = head // h, head % h
    before = segments - 1 - segment if REVERSE else segment
    for i in range(before):
        slot = segments - 2 - i if REVERSE else i
        one = (batch * (segments - 1) + slot) * h + h_in
        kept = tl.load(passed + one)
        state = state * kept + tl.load(added + one * p * n + place, mask=mask, other=0.0)
    return state


@launched
@triton.jit(do_not_specialize=["l", "chunks", "segment_chunks", "segments"])
def ssd_walk_kernel(
    x, B, total, column, first, added, passed, states, last,
    l, chunks, segment_chunks, segments, x_b, x_h, B_b, B_g,
    h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, heads_per_group: tl.constexpr,
    x_l: tl.constexpr, B_l: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCKS_P: tl.constexpr, BLOCK_N: tl.constexpr,
    DOT: tl.constexpr, REVERSE: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Carries the state through a segment: what it adds; with STORE the state before each chunk.

    In REVERSE x is the gradient of y, B is C, and the state is the gradient of the state: stored
    is that after each chunk, and last receives that before the first.
    """
    h_in, pp = tl.program_id(0) // BLOCKS_P, tl.program_id(0) % BLOCKS_P
    segment, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = batch * h + h_in
    pp = pp * BLOCK_P + tl.arange(0, BLOCK_P)
    nn, row = tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    slot = segment
    if STORE:
        state = start_state(
            first, added, passed, head, segment, segments, h, p, n, pp, nn,
            BLOCK_P, BLOCK_N, REVERSE,
        )  # fmt: skip
    else:
        state = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
        segment += 1 if REVERSE else 0
    kept = 1.0
    x += batch * x_b + h_in.to(tl.int64) * x_h
    B += batch * B_b + (h_in // heads_per_group).to(tl.int64) * B_g
    at_head = head * chunks * CHUNK
    start = segment * segment_chunks
    stop = tl.minimum(start + segment_chunks, chunks)
    for i in range(start, stop):
        chunk = start + stop - 1 - i if REVERSE else i
        t = chunk * CHUNK
        inside = (t + row < l)[:, None]
        x_c = tl.load(
            x + t.to(tl.int64) * x_l + row[:, None] * x_l + pp[None, :],
            mask=inside & (pp < p)[None, :], other=0.0,
        )  # fmt: skip
        B_c = tl.load(
            B + t.to(tl.int64) * B_l + row[:, None] * B_l + nn[None, :],
            mask=inside & (nn < n)[None, :], other=0.0,
        )  # fmt: skip
        all_time = tl.load(total + at_head + t + CHUNK - 1)
        if STORE:
            place = ((batch * chunks + chunk) * h + h_in) * p * n + pp[:, None] * n + nn[None, :]
            mask = (pp < p)[:, None] & (nn < n)[None, :]
            tl.store(states + place, state.to(states.dtype.element_ty), mask=mask)
        if REVERSE:
            exponent = tl.load(total + at_head + t + row)
        else:
            exponent = all_time - tl.load(column + at_head + t + row)
        weight = tl.exp2(exponent.to(tl.float32))
        u = operand(x_c.to(tl.float32) * weight[:, None], DOT)
        decay = tl.exp2(all_time.to(tl.float32))
        state = tl.dot(tl.trans(u), operand(B_c, DOT), state * decay, input_precision="ieee")
        kept *= decay
    place = pp[:, None] * n + nn[None, :]
    mask = (pp < p)[:, None] & (nn < n)[None, :]
    if STORE:
        if last is not None and segment == 0:
            tl.store(last + head * p * n + place, state, mask=mask)
    else:
        one = (batch * (segments - 1) + slot) * h + h_in
        tl.store(added + one * p * n + place, state, mask=mask)
        tl.store(passed + one, kept)


@launched
@triton.jit(do_not_specialize=["l", "chunks", "segment_chunks", "segments"])
def ssd_fwd_kernel(
    x, B, C, D, total, column, first, added, passed, y, final,
    l, chunks, segment_chunks, segments, x_b, x_h, B_b, B_g, C_b, C_g,
    h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, heads_per_group: tl.constexpr,
    x_l: tl.constexpr, B_l: tl.constexpr, C_l: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCKS_P: tl.constexpr, BLOCK_N: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """y of a segment of a head, chunk by chunk; the last segment gives the final state."""
    h_in, pp = tl.program_id(0) // BLOCKS_P, tl.program_id(0) % BLOCKS_P
    segment, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = batch * h + h_in
    pp = pp * BLOCK_P + tl.arange(0, BLOCK_P)
    nn, row = tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    state = start_state(
        first, added, passed, head, segment, segments, h, p, n, pp, nn, BLOCK_P, BLOCK_N, False
    )
    x += batch * x_b + h_in.to(tl.int64) * x_h
    B += batch * B_b + (h_in // heads_per_group).to(tl.int64) * B_g
    C += batch * C_b + (h_in // heads_per_group).to(tl.int64) * C_g
    y += batch * l * h * p + h_in * p
    at_head = head * chunks * CHUNK
    if D is not None:
        skip = tl.load(D + h_in).to(tl.float32)
    start = segment * segment_chunks
    for chunk in range(start, tl.minimum(start + segment_chunks, chunks)):
        t = chunk * CHUNK
        inside = (t + row < l)[:, None]
        of_state = inside & (nn < n)[None, :]
        x_c = tl.load(
            x + t.to(tl.int64) * x_l + row[:, None] * x_l + pp[None, :],
            mask=inside & (pp < p)[None, :], other=0.0,
        )  # fmt: skip
        B_c = tl.load(
            B + t.to(tl.int64) * B_l + row[:, None] * B_l + nn[None, :], mask=of_state, other=0.0
        )
        C_c = tl.load(
            C + t.to(tl.int64) * C_l + row[:, None] * C_l + nn[None, :], mask=of_state, other=0.0
        )
        B_c, C_c = operand(B_c, DOT), operand(C_c, DOT)
        seen_from = tl.load(total + at_head + t + row)
        given_at = tl.load(column + at_head + t + row)
        all_time = tl.load(total + at_head + t + CHUNK - 1)

        out = tl.dot(C_c, tl.trans(operand(state, DOT)), input_precision="ieee")
        out *= tl.exp2(seen_from.to(tl.float32))[:, None]
        exponent = (seen_from[:, None] - given_at[None, :]).to(tl.float32)
        exponent = tl.where(row[:, None] >= row[None, :], exponent, float("-inf"))
        seen = tl.dot(C_c, tl.trans(B_c), input_precision="ieee") * tl.exp2(exponent)
        out = tl.dot(operand(seen, DOT), operand(x_c, DOT), out, input_precision="ieee")
        if D is not None:
            out += skip * x_c.to(tl.float32)
        tl.store(
            y + t.to(tl.int64) * h * p + row[:, None] * (h * p) + pp[None, :],
            out.to(y.dtype.element_ty), mask=inside & (pp < p)[None, :],
        )  # fmt: skip

        weight = tl.exp2((all_time - given_at).to(tl.float32))
        u = operand(x_c.to(tl.float32) * weight[:, None], DOT)
        state *= tl.exp2(all_time.to(tl.float32))
        state = tl.dot(tl.trans(u), B_c, state, input_precision="ieee")
    if segment == segments - 1:
        mask = (pp < p)[:, None] & (nn < n)[None, :]
        tl.store(final + head * p * n + pp[:, None] * n + nn[None, :], state, mask=mask)
