"""Mamba-2's scan in Triton, backward, and both as ops that autograd and torch.compile see.

The states before each chunk are walked again, the gradients of the states after each chunk are
walked from the end. Then chunks are independent: a program goes through the heads of a group at
one chunk, so that the sums over heads, the gradients of B and C, stay in registers.
"""

import torch
import triton
import triton.language as tl

from remamba.ops.device import on_device, processors
from remamba.ops.recording import with_gradient
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.ssd_scan.triton_forward import (
    TRITON_DTYPES,
    Plan,
    dense,
    forward,
    operand,
    plan,
    rows_contiguous,
    ssd_walk_kernel,
    step_forward,
    walk_segments,
)
from remamba.ops.time_step.triton_softplus import slope, softplus
from remamba.ops.triton_launch import launched

Grads = tuple[torch.Tensor, ...]


def _fake(inputs, dt_min, dt_max):
    x, B, C = inputs.x, inputs.B, inputs.C
    b, _, h, p = x.shape
    parts = plan(x, B, C).segments - 1
    state = x.new_empty(b, h, p, B.shape[3], dtype=torch.float32)
    added = state.new_empty(b, parts, h, p, B.shape[3])
    return x.new_empty(x.shape), state, added, state.new_empty(b, parts, h)


def _fake_backward(inputs, *others):
    return [
        inputs.x.new_empty(0 if t is None else t.shape, dtype=None if t is None else t.dtype)
        for t in inputs
    ]


def backward(
    inputs: ScanInputs, added: torch.Tensor, passed: torch.Tensor,
    dy: torch.Tensor | None, dfinal: torch.Tensor | None, dt_min: float, dt_max: float,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients of the inputs, an empty one for what is None; added and passed are
    forward's."""
    x, dt, A, B, C, D, _, dt_bias, dt_scale, initial_state = inputs
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    cut = plan(x, B, C)
    dy = torch.zeros_like(x) if dy is None else rows_contiguous(dy)
    x, B, C = (rows_contiguous(t) for t in (x, B, C))
    A, D, dt_bias, initial_state = (dense(t) for t in (A, D, dt_bias, initial_state))
    wide = {"dtype": torch.float32, "device": x.device}
    with on_device(x):
        step, total, column = step_forward(cut, dt, A, dt_bias, dt_scale, dt_min, dt_max)
        before, _ = walk_chunks(cut, x, B, total, column, initial_state, added, passed, False)
        parts = walk_segments(cut, dy, C, total, column, reverse=True)
        after, dfirst = walk_chunks(cut, dy, C, total, column, dense(dfinal), *parts, True)

        blocks, heads = head_blocks(cut, x, g)
        dx = torch.empty((b, l, h, p), dtype=x.dtype, device=x.device)
        dBC = torch.empty((2, blocks, b, l, g, n), **wide)
        flow, taken, direct = torch.empty((3, b, h, cut.chunks * cut.chunk), **wide).unbind()
        across, dD = torch.empty((2, b, h, cut.chunks), **wide).unbind()
        ssd_bwd_kernel[(cut.chunks * blocks, g, b)](
            x, dy, B, C, D, step, total, before, after, dx, *dBC.unbind(),
            flow, taken, direct, across, dD, b, l, cut.chunks, blocks, heads,
            x.stride(0), x.stride(2), dy.stride(0), dy.stride(2),
            B.stride(0), B.stride(2), C.stride(0), C.stride(2),
            h, p, n, g, x.stride(1), dy.stride(1), B.stride(1), C.stride(1),
            cut.chunk, max(triton.next_power_of_2(p), 16), cut.block_n, TRITON_DTYPES[cut.dot],
            num_warps=8, num_stages=1 if cut.dot == torch.float32 else 2,
        )  # fmt: skip

        ddt = torch.empty((b, l, h), dtype=dt.dtype, device=x.device)
        dscale = torch.empty((b, l) if dt_scale is not None else 0, **wide)
        dA, dbias = torch.empty((2, b, cut.chunks, h), **wide).unbind()
        ssd_step_bwd_kernel[(cut.chunks, b)](
            dt, dt_bias, dt_scale, A, step, flow, taken, direct, across, ddt, dscale, dA, dbias,
            l, h, cut.chunks, dt_min, dt_max,
            *dt.stride(), *((0, 0) if dt_scale is None else dt_scale.stride()),
            cut.chunk, min(triton.next_power_of_2(h), 16), num_warps=4,
        )  # fmt: skip
    dA, dbias, dB, dC = dA.sum((0, 1)), dbias.sum((0, 1)), dBC[0].sum(0), dBC[1].sum(0)
    grads = (dx, ddt, dA, dB, dC, dD.sum((0, 2)), None, dbias, dscale, dfirst)
    return [
        x.new_empty(0) if t is None else grad.to(t.dtype)
        for grad, t in zip(grads, inputs, strict=True)
    ]


def _save(ctx, inputs, output):
    *tensors, ctx.dt_min, ctx.dt_max = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, backward, dy, dfinal, *unused):
    saved = ctx.saved_tensors
    grads = backward(*saved, dy, dfinal, ctx.dt_min, ctx.dt_max)
    given = zip(grads, saved[:10], strict=True)
    return *(None if t is None else grad for grad, t in given), None, None


recorded = with_gradient(
    "remamba::ssd", forward, backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip


def head_blocks(cut: Plan, x: torch.Tensor, g: int) -> tuple[int, int]:
    """In how many programs a group's heads are done at one chunk, and how many heads each has."""
    heads_per_group = x.shape[2] // g
    wanted = triton.cdiv(processors(x.device, 16) * 4, x.shape[0] * cut.chunks * g)
    heads = triton.cdiv(heads_per_group, min(wanted, heads_per_group))
    return triton.cdiv(heads_per_group, heads), heads


def walk_chunks(cut, x, B, total, column, first, added, passed, reverse: bool) -> Grads:
    """The states before each chunk (b, chunks, h, p, n), and the last one of the walk.

    In reverse those after each chunk and the one before the first.
    """
    b, l, h, p = x.shape
    n = B.shape[3]
    states = torch.empty((b, cut.chunks, h, p, n), dtype=cut.dot, device=x.device)
    last = torch.empty((b, h, p, n) if reverse else 0, dtype=torch.float32, device=x.device)
    ssd_walk_kernel[(h * cut.blocks_p, cut.segments, b)](
        x, B, total, column, first, added, passed, states, last if reverse else None,
        l, cut.chunks, cut.segment, cut.segments,
        x.stride(0), x.stride(2), B.stride(0), B.stride(2),
        h, p, n, h // B.shape[2], x.stride(1), B.stride(1),
        cut.chunk, cut.block_p, cut.blocks_p, cut.block_n, TRITON_DTYPES[cut.dot],
        reverse, True, num_warps=cut.num_warps, num_stages=3,
    )  # fmt: skip
    return states, last


@launched
@triton.jit(do_not_specialize=["b", "l", "chunks", "blocks", "heads"])
def ssd_bwd_kernel(
    x, dy, B, C, D, step, total, before, after, dx, dB, dC, flow, taken, direct, across, dD,
    b, l, chunks, blocks, heads, x_b, x_h, dy_b, dy_h, B_b, B_g, C_b, C_g,
    h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, g: tl.constexpr,
    x_l: tl.constexpr, dy_l: tl.constexpr, B_l: tl.constexpr, C_l: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The gradients at one chunk of some heads of a group.

    dx; dB and dC summed over these heads; and of each head by position, for ssd_step_bwd_kernel:
    direct, the gradient of the step as a factor of the input; flow and taken, whose running sums
    with across are the gradient of the decay's exponent.
    """
    chunk, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pp, nn, row = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    t = chunk * CHUNK
    inside = (t + row < l)[:, None]
    of_head = inside & (pp < p)[None, :]
    of_state = inside & (nn < n)[None, :]
    in_state = (pp < p)[:, None] & (nn < n)[None, :]
    t_64 = t.to(tl.int64)
    B += batch * B_b + group.to(tl.int64) * B_g + t_64 * B_l
    C += batch * C_b + group.to(tl.int64) * C_g + t_64 * C_l
    B_c = tl.load(B + row[:, None] * B_l + nn[None, :], mask=of_state, other=0.0)
    C_c = tl.load(C + row[:, None] * C_l + nn[None, :], mask=of_state, other=0.0)
    B_c, C_c = operand(B_c, DOT), operand(C_c, DOT)
    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    # in parts: a product in a loop of its own is laid out like those it meets below
    PART: tl.constexpr = min(BLOCK_N, 32)
    for first in range(0, BLOCK_N, PART):
        kk = first + tl.arange(0, PART)
        of_part = inside & (kk < n)[None, :]
        B_k = tl.load(B + row[:, None] * B_l + kk[None, :], mask=of_part, other=0.0)
        C_k = tl.load(C + row[:, None] * C_l + kk[None, :], mask=of_part, other=0.0)
        B_k, C_k = operand(B_k, DOT), operand(C_k, DOT)
        scores = tl.dot(C_k, tl.trans(B_k), scores, input_precision="ieee")
    dscores = tl.zeros((CHUNK, CHUNK), tl.float32)
    dB_c = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    dC_c = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    start = group * (h // g) + block * heads
    x += batch * x_b + t_64 * x_l + start.to(tl.int64) * x_h + row[:, None] * x_l + pp[None, :]
    dy += batch * dy_b + t_64 * dy_l + start.to(tl.int64) * dy_h
    dy += row[:, None] * dy_l + pp[None, :]
    dx += (batch * l + t_64) * h * p + start * p + row[:, None] * (h * p) + pp[None, :]
    for head in range(start, tl.minimum(start + heads, (group + 1) * (h // g))):
        x_c, dy_c = tl.load(x, mask=of_head, other=0.0), tl.load(dy, mask=of_head, other=0.0)
        place = ((batch * chunks + chunk) * h + head) * p * n + pp[:, None] * n + nn[None, :]
        before_c = tl.load(before + place, mask=in_state, other=0.0)
        after_c = tl.load(after + place, mask=in_state, other=0.0)
        at = (batch * h + head) * chunks * CHUNK + t
        time, sums = tl.load(step + at + row), tl.load(total + at + row)
        all_time = tl.load(total + at + CHUNK - 1)
        x_w, dy_w = x_c.to(tl.float32), dy_c.to(tl.float32)
        from_start = tl.exp2(sums.to(tl.float32))
        to_end = tl.exp2((all_time - sums).to(tl.float32))

        kept = tl.sum(before_c.to(tl.float32) * after_c.to(tl.float32))
        one = (batch * h + head) * chunks + chunk
        tl.store(across + one, kept * tl.exp2(all_time.to(tl.float32)))
        tl.store(dD + one, tl.sum(x_w * dy_w))
        before_c, after_c = operand(before_c, DOT), operand(after_c, DOT)
        given = operand(x_w * (time * to_end)[:, None], DOT)
        dB_c = tl.dot(given, after_c, dB_c, input_precision="ieee")
        asked = operand(dy_w * from_start[:, None], DOT)
        dC_c = tl.dot(asked, before_c, dC_c, input_precision="ieee")

        seen = tl.dot(C_c, tl.trans(before_c), input_precision="ieee")
        flow_c = tl.sum(seen * dy_w, 1) * from_start
        exponent = (sums[:, None] - sums[None, :]).to(tl.float32)
        exponent = tl.where(row[:, None] >= row[None, :], exponent, float("-inf"))
        decay = tl.exp2(exponent)
        dseen = tl.dot(operand(dy_c, DOT), tl.trans(operand(x_c, DOT)), input_precision="ieee")
        dseen *= decay * time[None, :]
        dscores += dseen
        passing = tl.where(row[:, None] > row[None, :], dseen * scores, 0.0)
        tl.store(flow + at + row, flow_c + tl.sum(passing, 1) - tl.sum(passing, 0))

        # what a step's input gives: to the chunk's own outputs, to the states after it
        soon = operand(scores * decay, DOT)
        soon = tl.dot(tl.trans(soon), operand(dy_c, DOT), input_precision="ieee")
        later = tl.dot(B_c, tl.trans(after_c), input_precision="ieee") * to_end[:, None]
        tl.store(taken + at + row, tl.sum(later * x_w, 1) * time)
        tl.store(direct + at + row, tl.sum((soon + later) * x_w, 1))
        dx_c = (soon + later) * time[:, None]
        if D is not None:
            dx_c += tl.load(D + head).to(tl.float32) * dy_w
        tl.store(dx, dx_c.to(dx.dtype.element_ty), mask=of_head)
        x, dy, dx = x + x_h, dy + dy_h, dx + p

    dscores = operand(dscores, DOT)
    dB_c = tl.dot(tl.trans(dscores), C_c, dB_c, input_precision="ieee")
    dC_c = tl.dot(dscores, B_c, dC_c, input_precision="ieee")
    out = ((block * b + batch) * l + t_64) * g * n + group * n
    out += row[:, None] * (g * n) + nn[None, :]
    tl.store(dB + out, dB_c, mask=of_state)
    tl.store(dC + out, dC_c, mask=of_state)


@launched
@triton.jit(do_not_specialize=["l", "chunks"])
def ssd_step_bwd_kernel(
    dt, dt_bias, dt_scale, A, step, flow, taken, direct, across, ddt, dscale, dA, dbias,
    l, h, chunks, dt_min, dt_max, dt_b, dt_l, dt_h, scale_b, scale_l,
    CHUNK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The gradients of dt and dt_scale at one chunk, and its parts of those of A and dt_bias."""
    chunk, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    scale = tl.full((CHUNK,), 1.0, tl.float32)
    if dt_scale is not None:
        place = batch * scale_b + t.to(tl.int64) * scale_l
        scale = tl.load(dt_scale + place, mask=t < l, other=0.0).to(tl.float32)
    dscale_c = tl.zeros((CHUNK,), tl.float32)
    for first in range(0, h, HEADS):
        head = first + tl.arange(0, HEADS)
        is_head = head < h
        mask = (t < l)[:, None] & is_head[None, :]
        at = (batch * h + head[None, :]) * chunks * CHUNK + t[:, None]
        # the exponent of step s is in the decay of what passes it: given before, seen from s on
        dexponent = tl.cumsum(tl.load(flow + at, mask=mask, other=0.0), 0, reverse=True)
        given = tl.load(taken + at, mask=mask, other=0.0)
        dexponent += tl.cumsum(given, 0) - given
        one = (batch * h + head) * chunks + chunk
        dexponent += tl.load(across + one, mask=is_head, other=0.0)[None, :]
        dexponent = tl.where(mask, dexponent, 0.0)
        rate = tl.load(A + head, mask=is_head, other=0.0).to(tl.float32)
        dstep = tl.load(direct + at, mask=mask, other=0.0) + dexponent * rate[None, :]
        one = (batch * chunks + chunk) * h + head
        dA_c = tl.sum(dexponent * tl.load(step + at, mask=mask, other=0.0), 0)
        tl.store(dA + one, dA_c, mask=is_head)

        at_dt = batch * dt_b + t.to(tl.int64)[:, None] * dt_l + head[None, :] * dt_h
        v = tl.load(dt + at_dt, mask=mask, other=0.0).to(tl.float32)
        if dt_bias is not None:
            v += tl.load(dt_bias + head, mask=is_head, other=0.0).to(tl.float32)[None, :]
        soft, z = softplus(v)
        if dt_scale is not None:
            clamped = tl.minimum(tl.maximum(soft, dt_min), dt_max)
            dscale_c += tl.sum(tl.where(mask, dstep * clamped, 0.0), 1)
        is_free = (soft >= dt_min) & (soft <= dt_max) & mask
        dv = tl.where(is_free, dstep * scale[:, None] * slope(v, z), 0.0)
        tl.store(dbias + one, tl.sum(dv, 0), mask=is_head)
        out = (batch * l + t.to(tl.int64)[:, None]) * h + head[None, :]
        tl.store(ddt + out, dv.to(ddt.dtype.element_ty), mask=mask)
    if dt_scale is not None:
        tl.store(dscale + batch * l + t, dscale_c, mask=t < l)
