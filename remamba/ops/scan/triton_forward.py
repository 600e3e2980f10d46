"""The forward kernels of the selective scan: two passes over chunks, states in registers."""

import torch
import triton
import triton.language as tl

from remamba.ops.scan.triton_elements import (
    LINKED,
    MANY_STATES,
    SIZES,
    load_channels,
    load_pairs,
    pack,
    prefetch_pairs,
    prefetch_rows,
    sigmoid,
    time_step,
)
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.triton_softplus import INTERPRETED, LOG2_E
from remamba.ops.triton_launch import launched


@launched
@triton.jit(do_not_specialize=SIZES)
def chunk_kernel(
    x, dt, z, pairs, A, D, dt_bias, dt_scale, states, step_sums, y, final_state,
    l, l_padded, chunk, num_chunks, x_b, dt_b, z_b, A_e, A_n, scale_b, scale_l,
    e: tl.constexpr, x_l: tl.constexpr, dt_l: tl.constexpr, z_l: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """One chunk of BLOCK channels, from one position to the next.

    Without OUTPUTS it starts from zero and gives the chunk's part of the next chunk's states
    (b, num_chunks, n, e) and the sum of its steps (b, num_chunks, e). With OUTPUTS it starts from
    states and gives y (b, l, e); the last chunk also final_state (b, e, n).
    """
    first = tl.program_id(0) * BLOCK
    c = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    d = first + tl.arange(0, BLOCK)
    real = d < e
    bias = load_channels(dt_bias, d, real, BLOCK)
    skip = load_channels(D if OUTPUTS else None, d, real, BLOCK)
    state_at = states + (b * num_chunks + c) * N * e + d
    rates = ()  # A in base 2
    h = ()
    for n in tl.static_range(N):
        rate = tl.load(A + d.to(tl.int64) * A_e + n * A_n, mask=real, other=0.0)
        rates += (rate.to(tl.float32) * LOG2_E,)
        if OUTPUTS:
            h += (tl.load(state_at + n * e, mask=real, other=0.0),)
        else:
            h += (tl.zeros([BLOCK], tl.float32),)
    steps = tl.zeros([BLOCK], tl.float32)

    start = c * chunk
    stop = tl.minimum(start + chunk, l)
    for t in range(start, stop, ROWS):
        at = tl.cast(t, tl.int64)
        x_at = x + b * x_b + at * x_l
        dt_at = dt + b * dt_b + at * dt_l
        z_at = z
        if z is not None:
            z_at += b * z_b + at * z_l
        pairs_at = pairs + (b * l_padded + at) * N
        x_rows = ()
        dt_rows = ()
        z_rows = ()
        for j in tl.static_range(ROWS):
            there = d < tl.where(t + j < stop, e, 0)
            dt_rows += (tl.load(dt_at + d + j * dt_l, mask=there, other=0.0),)
            x_rows += (tl.load(x_at + d + j * x_l, mask=there, other=0.0),)
            if OUTPUTS and z is not None:
                z_rows += (tl.load(z_at + d + j * z_l, mask=there, other=0.0),)
        if not INTERPRETED:  # the next rows, or these again where there are none
            ahead = tl.cast(tl.where(t + 2 * ROWS <= stop, ROWS, 0), tl.int64)
            prefetch_rows(x_at + ahead * x_l, first, e, x_l, ROWS, BLOCK, BLOCK)
            prefetch_rows(dt_at + ahead * dt_l, first, e, dt_l, ROWS, BLOCK, BLOCK)
            if OUTPUTS and z is not None:
                prefetch_rows(z_at + ahead * z_l, first, e, z_l, ROWS, BLOCK, BLOCK)
            prefetch_pairs(pairs_at + ahead * N, N, ROWS, BLOCK)
        y_rows = ()
        for j in tl.static_range(ROWS):
            scale_at = b * scale_b + (at + j) * scale_l
            step = time_step(dt_rows[j].to(tl.float32) + bias, dt_scale, scale_at, t + j < stop)
            x_j = x_rows[j].to(tl.float32)
            u = step * x_j
            B, C = load_pairs(pairs_at + j * N, N)
            h_next = ()
            if OUTPUTS:
                y_j = x_j * skip
                for n in tl.static_range(N):
                    h_n = tl.exp2(step * rates[n]) * h[n] + u * B[n]
                    y_j += h_n * C[n]
                    h_next += (h_n,)
                if z is not None:
                    z_j = z_rows[j].to(tl.float32)
                    y_j *= z_j * sigmoid(z_j)
                y_rows += (y_j.to(y.dtype.element_ty),)
            else:
                steps += step
                for n in tl.static_range(N):
                    h_next += (tl.exp2(step * rates[n]) * h[n] + u * B[n],)
            h = h_next
        # only after the rows: a store would hold back the loads that follow it
        if OUTPUTS:
            for j in tl.static_range(ROWS):
                y_at = y + (b * l + at) * e + d
                tl.store(y_at + j * e, y_rows[j], mask=d < tl.where(t + j < stop, e, 0))

    if OUTPUTS:
        if c == num_chunks - 1:
            for n in tl.static_range(N):
                tl.store(final_state + (b * e + d) * N + n, h[n], mask=real)
    else:
        for n in tl.static_range(N):
            tl.store(state_at + (N + n) * e, h[n], mask=real)
        tl.store(step_sums + (b * num_chunks + c) * e + d, steps, mask=real)


@launched
@triton.jit(do_not_specialize=SIZES)
def link_kernel(
    states, step_sums, A, initial_state, e, num_chunks, A_e, A_n, state_b, state_e, state_n,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns each chunk's part of the next one's states (b, num_chunks, n, e) into the states."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    real = d < e
    rate = tl.load(A + d.to(tl.int64) * A_e + n * A_n, mask=real, other=0.0)
    rate = rate.to(tl.float32) * LOG2_E
    h = tl.zeros([BLOCK], tl.float32)
    if initial_state is not None:
        from_state = initial_state + b * state_b + d.to(tl.int64) * state_e + n * state_n
        h = tl.load(from_state, mask=real, other=0.0).to(tl.float32)
    state_at = states + (b * num_chunks * N + n) * e + d
    sums_at = step_sums + b * num_chunks * e + d
    tl.store(state_at, h, mask=real)
    for c in range(0, num_chunks - 1, LINKED):
        at = tl.cast(c, tl.int64)
        parts = ()
        decays = ()
        for j in tl.static_range(LINKED):
            there = d < tl.where(c + j < num_chunks - 1, e, 0)
            decays += (tl.load(sums_at + (at + j) * e, mask=there, other=0.0),)
            parts += (tl.load(state_at + (at + j + 1) * N * e, mask=there, other=0.0),)
        for j in tl.static_range(LINKED):
            h = tl.exp2(decays[j] * rate) * h + parts[j]
            there = d < tl.where(c + j < num_chunks - 1, e, 0)
            tl.store(state_at + (at + j + 1) * N * e, h, mask=there)


def scan_forward(inputs: ScanInputs, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y (b, l, e), the final state (b, e, n), the states before each chunk (b, c, n, e) float32."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state = inputs
    b, l, e = x.shape
    n = A.shape[1]
    num_chunks = triton.cdiv(l, chunk)
    y = torch.empty(b, l, e, dtype=x.dtype, device=x.device)
    final_state = torch.empty(b, e, n, dtype=torch.float32, device=x.device)
    states = torch.empty(b, num_chunks, n, e, dtype=torch.float32, device=x.device)
    step_sums = torch.empty(b, num_chunks, e, dtype=torch.float32, device=x.device)
    pairs = pack(B, C)
    wide = n <= MANY_STATES
    block = 64 if wide else 32
    options = {
        "e": e, "x_l": x.stride(1), "dt_l": dt.stride(1), "z_l": 0 if z is None else z.stride(1),
        "N": n, "BLOCK": block, "ROWS": 4 if wide and x.element_size() == 2 else 2,
        "num_warps": 1, "maxnreg": 128 if wide else 255, "enable_fp_fusion": True,
    }  # fmt: skip
    arguments = (
        x, dt, z, pairs, A, D, dt_bias, dt_scale, states, step_sums, y, final_state,
        l, pairs.shape[1], chunk, num_chunks,
        x.stride(0), dt.stride(0), 0 if z is None else z.stride(0), *A.stride(),
        *(dt_scale.stride() if dt_scale is not None else (0, 0)),
    )  # fmt: skip
    blocks = triton.cdiv(e, block)
    if num_chunks > 1:
        chunk_kernel[(blocks, num_chunks - 1, b)](*arguments, OUTPUTS=False, **options)
    link_kernel[(triton.cdiv(e, 128), n, b)](
        states, step_sums, A, initial_state, e, num_chunks, *A.stride(),
        *(initial_state.stride() if initial_state is not None else (0, 0, 0)),
        N=n, BLOCK=128, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    chunk_kernel[(blocks, num_chunks, b)](*arguments, OUTPUTS=True, **options)
    return y, final_state, states
