"""The gradients of the selective scan, chunk by chunk: deterministic, states computed again."""

import functools

import torch
import triton
import triton.language as tl

from remamba.ops.scan.triton_adjoint import adjoint_kernel, carry_kernel
from remamba.ops.scan.triton_elements import (
    LN_2,
    MANY_STATES,
    SIZES,
    SPAN,
    lane_sums,
    load_channels,
    load_pairs,
    pack,
    prefetch,
    prefetch_pairs,
    prefetch_rows,
    sigmoid,
    time_step,
)
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.triton_softplus import INTERPRETED, LOG2_E, slope, softplus
from remamba.ops.triton_launch import launched

# one warp a program; each of its threads has so many channels
LANES = 32
GROUPS = 2
# registers of a thread: more of them leave fewer programs at once, fewer are spilled
REGISTERS = 168
# rows and most registers of the adjoint kernel
ADJOINT_ROWS = 2
ADJOINT_REGISTERS = 168
# float32 numbers of the states before every SPAN steps: a longer sequence is taken in pieces
SCRATCH = 2**28


@launched
@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    x, dt, z, dy, pairs, rates, D, dt_bias, dt_scale, block_states, carries,
    dx, ddt, dz, dA, dD, dbias, dpairs, dscale,
    l, chunk, num_chunks, x_b, dt_b, z_b, dy_b, pairs_b, states_b, out_b, scale_b, scale_l,
    e: tl.constexpr, x_l: tl.constexpr, dt_l: tl.constexpr, z_l: tl.constexpr, dy_l: tl.constexpr,
    N: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One chunk of GROUPS * 32 channels, backwards, SPAN steps at once: every gradient.

    A thread has GROUPS channels and walks over the n of a block, so that each state's decays are
    computed once and serve both directions. carries (b, num_chunks, n, e) goes in as the gradient
    of the state after the chunk and comes out as that of the state before it.
    dx, ddt, dz (b, l, e); dA (b, num_chunks, n, e), dD and dbias (b, num_chunks, e) are each
    chunk's part; dpairs (channel blocks, b, blocks, n, 2, SPAN) and dscale (channel blocks, b,
    blocks, SPAN) each channel block's.
    """
    first = tl.program_id(0) * (GROUPS * LANES)
    c = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    lanes = tl.arange(0, LANES)
    d = first + lanes  # of the first group; the others follow at a constant distance
    bias = ()
    skip = ()
    sum_D = ()
    sum_bias = ()
    for i in tl.static_range(GROUPS):
        there = d < e - i * LANES
        bias += (load_channels(dt_bias, d + i * LANES, there, LANES),)
        skip += (load_channels(D, d + i * LANES, there, LANES),)
        sum_D += (tl.zeros([LANES], tl.float32),)
        sum_bias += (tl.zeros([LANES], tl.float32),)

    start = c * chunk
    stop = tl.minimum(start + chunk, l)
    num_blocks = (stop - start + SPAN - 1) // SPAN
    chunk_at = (b * num_chunks + c) * N * e
    first_block = (b * num_chunks + c) * (chunk // SPAN)
    all_blocks = tl.num_programs(2).to(tl.int64) * num_chunks * (chunk // SPAN)
    for k in range(num_blocks):
        block = first_block + (num_blocks - 1 - k)
        t = start + (num_blocks - 1 - k) * SPAN
        at = tl.cast(t, tl.int64)
        x_at = x + b * x_b + at * x_l
        dt_at = dt + b * dt_b + at * dt_l
        dy_at = dy + b * dy_b + at * dy_l
        z_at = z
        if z is not None:
            z_at += b * z_b + at * z_l
        pairs_at = pairs + b * pairs_b + at * N
        step = ()
        u = ()
        dy_gated = ()
        for i in tl.static_range(GROUPS):
            step_i = ()
            u_i = ()
            dy_i = ()
            for j in tl.static_range(SPAN):
                there = d < tl.where(t + j < stop, e - i * LANES, 0)
                dt_j = tl.load(dt_at + d + (j * dt_l + i * LANES), mask=there, other=0.0).to(
                    tl.float32
                )
                x_j = tl.load(x_at + d + (j * x_l + i * LANES), mask=there, other=0.0).to(
                    tl.float32
                )
                dy_j = tl.load(dy_at + d + (j * dy_l + i * LANES), mask=there, other=0.0).to(
                    tl.float32
                )
                scale_at = b * scale_b + (at + j) * scale_l
                step_j = time_step(dt_j + bias[i], dt_scale, scale_at, t + j < stop)
                if z is not None:
                    z_j = tl.load(z_at + d + (j * z_l + i * LANES), mask=there, other=0.0).to(
                        tl.float32
                    )
                    dy_j *= z_j * sigmoid(z_j)
                step_i += (step_j,)
                u_i += (step_j * x_j,)
                dy_i += (dy_j,)
            step += (step_i,)
            u += (u_i,)
            dy_gated += (dy_i,)
        if not INTERPRETED:  # the rows before, or these again where there are none
            back = tl.cast(tl.where(t > start, SPAN, 0), tl.int64)
            WIDTH: tl.constexpr = GROUPS * LANES
            prefetch_rows(x_at - back * x_l, first, e, x_l, SPAN, WIDTH, LANES)
            prefetch_rows(dt_at - back * dt_l, first, e, dt_l, SPAN, WIDTH, LANES)
            prefetch_rows(dy_at - back * dy_l, first, e, dy_l, SPAN, WIDTH, LANES)
            if z is not None:
                prefetch_rows(z_at - back * z_l, first, e, z_l, SPAN, WIDTH, LANES)
            prefetch_pairs(pairs_at - back * N, N, SPAN, LANES)
            states_at = block_states + (block - tl.where(t > start, 1, 0)) * N * e
            for i in tl.static_range((N + LANES - 1) // LANES):
                each_n = tl.minimum(i * LANES + lanes, N - 1)
                for group in tl.static_range(GROUPS):
                    prefetch(states_at + each_n * e + tl.minimum(first + group * LANES, e - 1))

        y = ()
        du = ()
        dstep = ()
        for _ in tl.static_range(GROUPS):
            zeros = ()
            for _ in tl.static_range(SPAN):
                zeros += (tl.zeros([LANES], tl.float32),)
            y += (zeros,)
            du += (zeros,)
            dstep += (zeros,)
        for n in range(N):
            B = ()
            C = ()
            for j in tl.static_range(SPAN):
                B_j, C_j = load_pairs(pairs_at + n + j * N, 1)
                B += (B_j[0],)
                C += (C_j[0],)
            dB = ()
            dC = ()
            y_next = ()
            du_next = ()
            dstep_next = ()
            for i in tl.static_range(GROUPS):
                real = d < e - i * LANES
                carry_at = carries + (chunk_at + n * e) + d + i * LANES
                dA_at = dA + (chunk_at + n * e) + d + i * LANES
                state_at = block_states + (block * N + n) * e + d + i * LANES
                rate = tl.load(rates + n * e + d + i * LANES, mask=real, other=0.0)
                h = tl.load(state_at, mask=real, other=0.0)
                g = tl.load(carry_at, mask=real, other=0.0)
                before = d < tl.where(k > 0, e - i * LANES, 0)
                dA_n = tl.load(dA_at, mask=before, other=0.0)
                a = ()
                decayed = ()
                dC_i = ()
                y_i = ()
                for j in tl.static_range(SPAN):
                    a += (tl.exp2(step[i][j] * rate),)
                    decayed += (a[j] * h,)
                    h = decayed[j] + u[i][j] * B[j]
                    y_i += (y[i][j] + h * C[j],)
                    dC_j = dy_gated[i][j] * h
                    if i > 0:
                        dC_j += dC[j]
                    dC_i += (dC_j,)
                dC = dC_i
                dB_i = ()
                du_i = ()
                dstep_i = ()
                for r in tl.static_range(SPAN):
                    g += dy_gated[i][SPAN - 1 - r] * C[SPAN - 1 - r]
                    dB_j = g * u[i][SPAN - 1 - r]
                    if i > 0:
                        dB_j += dB[SPAN - 1 - r]
                    dB_i = (dB_j,) + dB_i  # noqa: RUF005
                    du_i = (du[i][SPAN - 1 - r] + g * B[SPAN - 1 - r],) + du_i  # noqa: RUF005
                    dexponent = g * decayed[SPAN - 1 - r]
                    dstep_j = dstep[i][SPAN - 1 - r] + dexponent * rate
                    dstep_i = (dstep_j,) + dstep_i  # noqa: RUF005
                    dA_n += dexponent * step[i][SPAN - 1 - r]
                    g *= a[SPAN - 1 - r]
                dB = dB_i
                y_next += (y_i,)
                du_next += (du_i,)
                dstep_next += (dstep_i,)
                tl.store(carry_at, g, mask=real)
                tl.store(dA_at, dA_n, mask=real)
            y = y_next
            du = du_next
            dstep = dstep_next
            total, index = lane_sums(dB + dC, 2 * SPAN, LANES)
            of_block = (tl.program_id(0) * all_blocks + block) * N
            tl.store(dpairs + (of_block + n) * (2 * SPAN) + index, total)

        # what is cheap to compute again is not kept over the loop
        dscale_rows = ()
        next_D = ()
        next_bias = ()
        for i in tl.static_range(GROUPS):
            sum_D_i = sum_D[i]
            sum_bias_i = sum_bias[i]
            dscale_i = ()
            for j in tl.static_range(SPAN):
                there = d < tl.where(t + j < stop, e - i * LANES, 0)
                to = b * out_b + at * e
                x_j = tl.load(x_at + d + (j * x_l + i * LANES), mask=there, other=0.0).to(
                    tl.float32
                )
                dt_j = tl.load(dt_at + d + (j * dt_l + i * LANES), mask=there, other=0.0).to(
                    tl.float32
                )
                soft, z_dt = softplus(dt_j + bias[i])
                if z is not None:
                    z_j = tl.load(z_at + d + (j * z_l + i * LANES), mask=there, other=0.0).to(
                        tl.float32
                    )
                    dy_j = tl.load(dy_at + d + (j * dy_l + i * LANES), mask=there, other=0.0).to(
                        tl.float32
                    )
                    gate = sigmoid(z_j)
                    y_j = y[i][j] + x_j * skip[i]
                    dz_j = dy_j * y_j * gate * (1.0 + z_j * (1.0 - gate))
                    tl.store(
                        dz + to + d + (j * e + i * LANES), dz_j.to(dz.dtype.element_ty), mask=there
                    )
                dx_j = du[i][j] * step[i][j] + dy_gated[i][j] * skip[i]
                tl.store(
                    dx + to + d + (j * e + i * LANES), dx_j.to(dx.dtype.element_ty), mask=there
                )
                dstep_j = du[i][j] * x_j + dstep[i][j] * LN_2
                if dscale is not None:
                    dscale_j = dstep_j * soft
                    if i > 0:
                        dscale_j += dscale_rows[j]
                    dscale_i += (dscale_j,)
                if dt_scale is not None:
                    scale_at = dt_scale + b * scale_b + (at + j) * scale_l
                    dstep_j *= tl.load(scale_at, mask=t + j < stop)
                ddt_j = dstep_j * slope(dt_j + bias[i], z_dt)
                tl.store(
                    ddt + to + d + (j * e + i * LANES), ddt_j.to(ddt.dtype.element_ty), mask=there
                )
                sum_D_i += dy_gated[i][j] * x_j
                sum_bias_i += tl.where(there, ddt_j, 0.0)
            dscale_rows = dscale_i
            next_D += (sum_D_i,)
            next_bias += (sum_bias_i,)
        sum_D = next_D
        sum_bias = next_bias
        if dscale is not None:
            total, index = lane_sums(dscale_rows, SPAN, LANES)
            tl.store(dscale + (tl.program_id(0) * all_blocks + block) * SPAN + index, total)

    for i in tl.static_range(GROUPS):
        sum_at = (b * num_chunks + c) * e + d + i * LANES
        if D is not None:
            tl.store(dD + sum_at, sum_D[i], mask=d < e - i * LANES)
        if dt_bias is not None:
            tl.store(dbias + sum_at, sum_bias[i], mask=d < e - i * LANES)


def given(inputs: ScanInputs, needed: list[bool]) -> list[bool]:
    """Of which of the ten inputs there is a gradient: those needed, and x, dt and z in any case."""
    return [
        t is not None and (need or i in (0, 1, 6))
        for i, (t, need) in enumerate(zip(inputs, needed, strict=True))
    ]


def scan_backward(
    inputs: ScanInputs, dy: torch.Tensor, dstate: torch.Tensor, states: torch.Tensor,
    chunk: int, needed: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients of the inputs, each in its dtype.

    needed: which of them are asked for; the others come out empty. states (b, chunks, n, e) are
    those before each chunk, as the forward pass left them.
    """
    x, dt, A, B, C, D, z, dt_bias, dt_scale, _ = inputs
    b, l, e = x.shape
    n = A.shape[1]
    wanted = given(inputs, needed)
    grads = [
        torch.empty(t.shape, dtype=t.dtype, device=x.device) if want else x.new_empty(0)
        for t, want in zip(inputs, wanted, strict=True)
    ]
    rates = (A.float() * LOG2_E.value).t().contiguous()
    pairs = pack(B, C)
    sums: dict[int, list[torch.Tensor]] = {2: [], 5: [], 7: []}  # dA, dD, dbias of the pieces
    carry = dstate
    piece_chunks = max(1, SCRATCH // (b * n * e * (chunk // SPAN)))
    for first in reversed(range(0, states.shape[1], piece_chunks)):
        piece = slice(first * chunk, min((first + piece_chunks) * chunk, l))
        cut = [None if t is None else t[:, piece] for t in (x, dt, z, dy, pairs, dt_scale)]
        out = [grads[i][:, piece] if wanted[i] else None for i in (0, 1, 6)]
        here = states[:, first : first + piece_chunks]
        carry, dpairs, dscale, *of_chunks = _piece(
            *cut, out, carry, rates, D, dt_bias, here, chunk, wanted[8]
        )
        by_position = [*_by_position(dpairs).unbind(-1)] if wanted[3] or wanted[4] else [None, None]
        by_position.append(_by_position(dscale) if wanted[8] else None)
        for i, grad in zip((3, 4, 8), by_position, strict=True):
            if wanted[i]:
                grads[i][:, piece] = grad[:, : piece.stop - piece.start]
        for (i, parts), part in zip(sums.items(), of_chunks, strict=True):
            if wanted[i]:
                parts.append(part.sum((0, 1)))
    for i, parts in sums.items():
        if wanted[i]:
            grads[i].copy_(functools.reduce(torch.add, parts))
    if wanted[9]:
        grads[9].copy_(carry)
    return grads


def _piece(x, dt, z, dy, pairs, dt_scale, out, dstate, rates, D, dt_bias, states, chunk, to_scale):
    """Fills out (of x, dt, z) and returns, float32, what is left to be summed of the others.

    The gradient of the state before these positions (b, e, n); dpairs and dscale as
    gradient_kernel gives them; those of A (b, chunks, e, n), of D and dt_bias (b, chunks, e).
    """
    b, l, e = x.shape
    num_chunks, n = states.shape[1:3]
    num_blocks = num_chunks * (chunk // SPAN)
    channel_blocks = triton.cdiv(e, GROUPS * LANES)

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    carries, step_sums = new(b, num_chunks, n, e), new(b, num_chunks, e)
    block_states = new(b, num_blocks, n, e)
    sizes = (
        l, chunk, num_chunks,
        x.stride(0), dt.stride(0), 0 if z is None else z.stride(0), dy.stride(0),
        pairs.stride(0), states.stride(0), out[0].stride(0),
        *((0, 0) if dt_scale is None else dt_scale.stride()),
    )  # fmt: skip
    options = {
        "e": e, "x_l": x.stride(1), "dt_l": dt.stride(1), "z_l": 0 if z is None else z.stride(1),
        "dy_l": dy.stride(1), "N": n, "SPAN": SPAN, "num_warps": 1, "enable_fp_fusion": True,
    }  # fmt: skip
    wide = n <= MANY_STATES
    block = 64 if wide else 32
    registers = ADJOINT_REGISTERS if wide else 255
    adjoint_kernel[(triton.cdiv(e, block), num_chunks, b)](
        x, dt, z, dy, pairs, rates, dt_bias, dt_scale, states, block_states, carries, step_sums,
        *sizes, BLOCK=block, ROWS=ADJOINT_ROWS, maxnreg=registers, **options,
    )  # fmt: skip
    carry_kernel[(triton.cdiv(e, 128), n, b)](
        carries, step_sums, rates, dstate, e, num_chunks, *dstate.stride(),
        N=n, BLOCK=128, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    dA, dD, dbias = new(b, num_chunks, n, e), new(b, num_chunks, e), new(b, num_chunks, e)
    dpairs = new(channel_blocks, b, num_blocks, n, 2, SPAN)
    dscale = new(channel_blocks, b, num_blocks, SPAN) if to_scale else None
    gradient_kernel[(channel_blocks, num_chunks, b)](
        x, dt, z, dy, pairs, rates, D, dt_bias, dt_scale, block_states, carries,
        *out, dA, dD, dbias, dpairs, dscale,
        *sizes, LANES=LANES, GROUPS=GROUPS, maxnreg=REGISTERS, **options,
    )  # fmt: skip
    return carries[:, 0].mT, dpairs, dscale, dA.mT, dD, dbias


def _by_position(parts: torch.Tensor) -> torch.Tensor:
    """(channel blocks, b, blocks, ..., SPAN), summed over the first -> (b, blocks * SPAN, ...)."""
    return parts.sum(0).movedim(-1, 2).flatten(1, 2)
