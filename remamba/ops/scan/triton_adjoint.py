"""What the selective scan's gradients start from: states within, and adjoints after, each chunk."""

import triton
import triton.language as tl

from remamba.ops.scan.triton_elements import (
    LINKED,
    SIZES,
    load_channels,
    load_pairs,
    prefetch_pairs,
    prefetch_rows,
    sigmoid,
    time_step,
)
from remamba.ops.time_step.triton_softplus import INTERPRETED
from remamba.ops.triton_launch import launched


@launched
@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    x, dt, z, dy, pairs, rates, dt_bias, dt_scale, states, block_states, carries, step_sums,
    l, chunk, num_chunks, x_b, dt_b, z_b, dy_b, pairs_b, states_b, out_b, scale_b, scale_l,
    e: tl.constexpr, x_l: tl.constexpr, dt_l: tl.constexpr, z_l: tl.constexpr, dy_l: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One chunk of BLOCK channels, forwards: what its gradients need to be computed in blocks.

    From the states before the chunks (b, num_chunks, n, e) it gives those before every SPAN steps
    (b, blocks, n, e), the sum of the chunk's steps (b, num_chunks, e), and, at the chunk before it
    in carries (b, num_chunks, n, e), what its own y give to the gradient of the state before it.
    """
    first = tl.program_id(0) * BLOCK
    c = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    d = first + tl.arange(0, BLOCK)
    real = d < e
    bias = load_channels(dt_bias, d, real, BLOCK)
    state_at = states + b * states_b + tl.cast(c, tl.int64) * N * e + d
    rate = ()
    h = ()
    decay = ()  # from before the chunk to here
    part = ()
    for n in tl.static_range(N):
        rate += (tl.load(rates + n * e + d, mask=real, other=0.0),)
        h += (tl.load(state_at + n * e, mask=real, other=0.0),)
        decay += (tl.full([BLOCK], 1.0, tl.float32),)
        part += (tl.zeros([BLOCK], tl.float32),)
    steps = tl.zeros([BLOCK], tl.float32)

    start = c * chunk
    stop = tl.minimum(start + chunk, l)
    blocks_at = block_states + (b * num_chunks + c) * (chunk // SPAN) * N * e + d
    for t in range(start, stop, ROWS):
        at = tl.cast(t, tl.int64)
        x_at = x + b * x_b + at * x_l
        dt_at = dt + b * dt_b + at * dt_l
        dy_at = dy + b * dy_b + at * dy_l
        z_at = z
        if z is not None:
            z_at += b * z_b + at * z_l
        pairs_at = pairs + b * pairs_b + at * N
        if (t - start) % SPAN == 0:
            block = tl.cast((t - start) // SPAN, tl.int64)
            for n in tl.static_range(N):
                tl.store(blocks_at + (block * N + n) * e, h[n], mask=real)
        x_rows = ()
        dt_rows = ()
        z_rows = ()
        dy_rows = ()
        for j in tl.static_range(ROWS):
            there = d < tl.where(t + j < stop, e, 0)
            dt_rows += (tl.load(dt_at + d + j * dt_l, mask=there, other=0.0),)
            x_rows += (tl.load(x_at + d + j * x_l, mask=there, other=0.0),)
            dy_rows += (tl.load(dy_at + d + j * dy_l, mask=there, other=0.0),)
            if z is not None:
                z_rows += (tl.load(z_at + d + j * z_l, mask=there, other=0.0),)
        if not INTERPRETED:  # the next rows, or these again where there are none
            ahead = tl.cast(tl.where(t + 2 * ROWS <= stop, ROWS, 0), tl.int64)
            prefetch_rows(x_at + ahead * x_l, first, e, x_l, ROWS, BLOCK, BLOCK)
            prefetch_rows(dt_at + ahead * dt_l, first, e, dt_l, ROWS, BLOCK, BLOCK)
            prefetch_rows(dy_at + ahead * dy_l, first, e, dy_l, ROWS, BLOCK, BLOCK)
            if z is not None:
                prefetch_rows(z_at + ahead * z_l, first, e, z_l, ROWS, BLOCK, BLOCK)
            prefetch_pairs(pairs_at + ahead * N, N, ROWS, BLOCK)
        for j in tl.static_range(ROWS):
            scale_at = b * scale_b + (at + j) * scale_l
            step = time_step(dt_rows[j].to(tl.float32) + bias, dt_scale, scale_at, t + j < stop)
            u = step * x_rows[j].to(tl.float32)
            dy_j = dy_rows[j].to(tl.float32)
            if z is not None:
                z_j = z_rows[j].to(tl.float32)
                dy_j *= z_j * sigmoid(z_j)
            steps += step
            B, C = load_pairs(pairs_at + j * N, N)
            h_next = ()
            decay_next = ()
            part_next = ()
            for n in tl.static_range(N):
                a = tl.exp2(step * rate[n])
                h_next += (a * h[n] + u * B[n],)
                decay_n = a * decay[n]
                part_next += (part[n] + decay_n * (dy_j * C[n]),)
                decay_next += (decay_n,)
            h = h_next
            decay = decay_next
            part = part_next
    tl.store(step_sums + (b * num_chunks + c) * e + d, steps, mask=real)
    if c > 0:
        for n in tl.static_range(N):
            tl.store(carries + ((b * num_chunks + c - 1) * N + n) * e + d, part[n], mask=real)


@launched
@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    carries, step_sums, rates, dstate, e, num_chunks, dstate_b, dstate_e, dstate_n,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns what each chunk gives into the whole gradient of the states that it starts from."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    real = d < e
    rate = tl.load(rates + n * e + d, mask=real, other=0.0)
    from_dstate = dstate + b * dstate_b + d.to(tl.int64) * dstate_e + n * dstate_n
    g = tl.load(from_dstate, mask=real, other=0.0).to(tl.float32)
    carry_at = carries + (b * num_chunks * N + n) * e + d
    sums_at = step_sums + b * num_chunks * e + d
    last = num_chunks - 1
    tl.store(carry_at + tl.cast(last, tl.int64) * N * e, g, mask=real)
    for k in range(0, last, LINKED):
        at = tl.cast(last - k, tl.int64)
        parts = ()
        decays = ()
        for j in tl.static_range(LINKED):
            there = d < tl.where(k + j < last, e, 0)
            decays += (tl.load(sums_at + (at - j) * e, mask=there, other=0.0),)
            parts += (tl.load(carry_at + (at - j - 1) * N * e, mask=there, other=0.0),)
        for j in tl.static_range(LINKED):
            g = tl.exp2(decays[j] * rate) * g + parts[j]
            there = d < tl.where(k + j < last, e, 0)
            tl.store(carry_at + (at - j - 1) * N * e, g, mask=there)
