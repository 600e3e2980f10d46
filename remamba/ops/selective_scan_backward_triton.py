"""The backward kernels of the selective scan: deterministic, each state computed again."""

import torch
import triton
import triton.language as tl

from remamba.ops.scan_elements_triton import (
    INTERPRETED,
    LN_2,
    LOG2_E,
    MANY_STATES,
    lane_sums,
    load_pairs,
    pack,
    prefetch,
    prefetch_pairs,
    prefetch_rows,
    reciprocal,
    sigmoid,
    softplus,
)

# steps whose gradients are computed at once; between such blocks a scratch holds the states
SPAN = 8
# one warp a program; each of its threads has so many channels
LANES = 32
GROUPS = 2
LINKED: tl.constexpr = tl.constexpr(8)


@triton.jit
def adjoint_kernel(
    x, dt, z, dy, pairs, rates, dt_bias, dt_scale, states, block_states, carries, step_sums,
    l, e, chunk, num_chunks, x_b, x_l, dt_b, dt_l, z_b, z_l, dy_b, dy_l, scale_b, scale_l,
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
    bias = tl.zeros([BLOCK], tl.float32)
    if dt_bias is not None:
        bias = tl.load(dt_bias + d, mask=real, other=0.0).to(tl.float32)
    state_at = states + (b * num_chunks + c) * N * e + d
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
        pairs_at = pairs + (b * l + at) * N
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
            dt_rows += (tl.load(dt_at + j * dt_l + d, mask=there, other=0.0),)
            x_rows += (tl.load(x_at + j * x_l + d, mask=there, other=0.0),)
            dy_rows += (tl.load(dy_at + j * dy_l + d, mask=there, other=0.0),)
            if z is not None:
                z_at = z + b * z_b + at * z_l
                z_rows += (tl.load(z_at + j * z_l + d, mask=there, other=0.0),)
        if not INTERPRETED:  # the next rows, or these again where there are none
            ahead = tl.where(t + 2 * ROWS <= stop, ROWS, 0)
            prefetch_rows(x_at + ahead * x_l, x_l, first, e, ROWS, BLOCK, BLOCK)
            prefetch_rows(dt_at + ahead * dt_l, dt_l, first, e, ROWS, BLOCK, BLOCK)
            prefetch_rows(dy_at + ahead * dy_l, dy_l, first, e, ROWS, BLOCK, BLOCK)
            if z is not None:
                z_at = z + b * z_b + (at + ahead) * z_l
                prefetch_rows(z_at, z_l, first, e, ROWS, BLOCK, BLOCK)
            prefetch_pairs(pairs_at + ahead * N, stop - t - ahead, N, ROWS, BLOCK)
        for j in tl.static_range(ROWS):
            step, _ = softplus(dt_rows[j].to(tl.float32) + bias)
            row = tl.minimum(t + j, stop - 1)
            if dt_scale is not None:
                step *= tl.load(dt_scale + b * scale_b + tl.cast(row, tl.int64) * scale_l)
            step = tl.where(t + j < stop, step, 0.0)
            u = step * x_rows[j].to(tl.float32)
            dy_j = dy_rows[j].to(tl.float32)
            if z is not None:
                z_j = z_rows[j].to(tl.float32)
                dy_j *= z_j * sigmoid(z_j)
            steps += step
            B, C = load_pairs(pairs_at + (row - t) * N, N)
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


@triton.jit
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


@triton.jit
def gradient_kernel(
    x, dt, z, dy, pairs, rates, D, dt_bias, dt_scale, block_states, carries,
    dx, ddt, dz, dA, dD, dbias, dpairs, dscale,
    l, e, chunk, num_chunks, x_b, x_l, dt_b, dt_l, z_b, z_l, dy_b, dy_l, scale_b, scale_l,
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
    bias = ()
    skip = ()
    sum_D = ()
    sum_bias = ()
    for i in tl.static_range(GROUPS):
        d = first + i * LANES + lanes
        bias_i = tl.zeros([LANES], tl.float32)
        skip_i = tl.zeros([LANES], tl.float32)
        if dt_bias is not None:
            bias_i = tl.load(dt_bias + d, mask=d < e, other=0.0).to(tl.float32)
        if D is not None:
            skip_i = tl.load(D + d, mask=d < e, other=0.0).to(tl.float32)
        bias += (bias_i,)
        skip += (skip_i,)
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
        pairs_at = pairs + (b * l + at) * N
        step = ()
        u = ()
        dy_gated = ()
        for i in tl.static_range(GROUPS):
            d = first + i * LANES + lanes
            step_i = ()
            u_i = ()
            dy_i = ()
            for j in tl.static_range(SPAN):
                there = d < tl.where(t + j < stop, e, 0)
                dt_j = tl.load(dt_at + j * dt_l + d, mask=there, other=0.0).to(tl.float32)
                x_j = tl.load(x_at + j * x_l + d, mask=there, other=0.0).to(tl.float32)
                dy_j = tl.load(dy_at + j * dy_l + d, mask=there, other=0.0).to(tl.float32)
                step_j, _ = softplus(dt_j + bias[i])
                if dt_scale is not None:
                    row = tl.cast(tl.minimum(t + j, stop - 1), tl.int64)
                    step_j *= tl.load(dt_scale + b * scale_b + row * scale_l)
                step_j = tl.where(t + j < stop, step_j, 0.0)
                if z is not None:
                    z_at = z + b * z_b + at * z_l
                    z_j = tl.load(z_at + j * z_l + d, mask=there, other=0.0).to(tl.float32)
                    dy_j *= z_j * sigmoid(z_j)
                step_i += (step_j,)
                u_i += (step_j * x_j,)
                dy_i += (dy_j,)
            step += (step_i,)
            u += (u_i,)
            dy_gated += (dy_i,)
        if not INTERPRETED:  # the rows before, or these again where there are none
            back = tl.where(t > start, SPAN, 0)
            WIDTH: tl.constexpr = GROUPS * LANES
            prefetch_rows(x_at - back * x_l, x_l, first, e, SPAN, WIDTH, LANES)
            prefetch_rows(dt_at - back * dt_l, dt_l, first, e, SPAN, WIDTH, LANES)
            prefetch_rows(dy_at - back * dy_l, dy_l, first, e, SPAN, WIDTH, LANES)
            if z is not None:
                z_at = z + b * z_b + (at - back) * z_l
                prefetch_rows(z_at, z_l, first, e, SPAN, WIDTH, LANES)
            prefetch_pairs(pairs_at - back * N, stop - t + back, N, SPAN, LANES)
            before = block_states + (block - tl.where(t > start, 1, 0)) * N * e
            for i in tl.static_range((N + LANES - 1) // LANES):
                each_n = tl.minimum(i * LANES + lanes, N - 1)
                for group in tl.static_range(GROUPS):
                    prefetch(before + each_n * e + tl.minimum(first + group * LANES, e - 1))

        y = ()
        du = ()
        dstep = ()
        for i in tl.static_range(GROUPS):
            zeros = ()
            for j in tl.static_range(SPAN):
                zeros += (tl.zeros([LANES], tl.float32),)
            y += (zeros,)
            du += (zeros,)
            dstep += (zeros,)
        for n in range(N):
            B = ()
            C = ()
            for j in tl.static_range(SPAN):
                pair_at = pairs_at + (tl.minimum(t + j, stop - 1) - t) * N + n
                B_j, C_j = load_pairs(pair_at, 1)
                B += (B_j[0],)
                C += (C_j[0],)
            dB = ()
            dC = ()
            y_next = ()
            du_next = ()
            dstep_next = ()
            for i in tl.static_range(GROUPS):
                d = first + i * LANES + lanes
                n_at = chunk_at + n * e + d
                real = d < e
                rate = tl.load(rates + n * e + d, mask=real, other=0.0)
                h = tl.load(block_states + (block * N + n) * e + d, mask=real, other=0.0)
                g = tl.load(carries + n_at, mask=real, other=0.0)
                there = d < tl.where(k > 0, e, 0)
                dA_n = tl.load(dA + n_at, mask=there, other=0.0)
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
                tl.store(carries + n_at, g, mask=real)
                tl.store(dA + n_at, dA_n, mask=real)
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
            d = first + i * LANES + lanes
            sum_D_i = sum_D[i]
            sum_bias_i = sum_bias[i]
            dscale_i = ()
            for j in tl.static_range(SPAN):
                there = d < tl.where(t + j < stop, e, 0)
                to = (b * l + at + j) * e + d
                x_j = tl.load(x_at + j * x_l + d, mask=there, other=0.0).to(tl.float32)
                dt_j = tl.load(dt_at + j * dt_l + d, mask=there, other=0.0).to(tl.float32)
                soft, power = softplus(dt_j + bias[i])
                if z is not None:
                    z_at = z + b * z_b + at * z_l
                    z_j = tl.load(z_at + j * z_l + d, mask=there, other=0.0).to(tl.float32)
                    dy_j = tl.load(dy_at + j * dy_l + d, mask=there, other=0.0).to(tl.float32)
                    gate = sigmoid(z_j)
                    y_j = y[i][j] + x_j * skip[i]
                    dz_j = dy_j * y_j * gate * (1.0 + z_j * (1.0 - gate))
                    tl.store(dz + to, dz_j.to(dz.dtype.element_ty), mask=there)
                dx_j = du[i][j] * step[i][j] + dy_gated[i][j] * skip[i]
                tl.store(dx + to, dx_j.to(dx.dtype.element_ty), mask=there)
                dstep_j = du[i][j] * x_j + dstep[i][j] * LN_2
                if dscale is not None:
                    dscale_j = dstep_j * soft
                    if i > 0:
                        dscale_j += dscale_rows[j]
                    dscale_i += (dscale_j,)
                if dt_scale is not None:
                    row = tl.cast(tl.minimum(t + j, stop - 1), tl.int64)
                    dstep_j *= tl.load(dt_scale + b * scale_b + row * scale_l)
                ddt_j = dstep_j * (power * reciprocal(1.0 + power))
                tl.store(ddt + to, ddt_j.to(ddt.dtype.element_ty), mask=there)
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
        d = first + i * LANES + lanes
        if D is not None:
            tl.store(dD + (b * num_chunks + c) * e + d, sum_D[i], mask=d < e)
        if dt_bias is not None:
            tl.store(dbias + (b * num_chunks + c) * e + d, sum_bias[i], mask=d < e)


def scan_backward(
    dy, dstate, x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, states, chunk, needed
) -> list[torch.Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, each in its dtype.

    needed: which of them are asked for; the others come out empty.
    """
    b, l, e = x.shape
    n = A.shape[1]
    num_chunks = states.shape[1]
    num_blocks = chunk // SPAN  # of a chunk
    channel_blocks = triton.cdiv(e, GROUPS * LANES)

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    def like(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else torch.empty(t.shape, dtype=t.dtype, device=x.device)

    rates = (A.float() * LOG2_E.value).t().contiguous()
    pairs = pack(B, C)
    carries, step_sums = new(b, num_chunks, n, e), new(b, num_chunks, e)
    block_states = new(b, num_chunks * num_blocks, n, e)
    strides = [s for t in (x, dt, z, dy) for s in (t.stride()[:2] if t is not None else (0, 0))]
    strides += dt_scale.stride() if dt_scale is not None else (0, 0)
    sizes = (l, e, chunk, num_chunks, *strides)
    options = {"N": n, "SPAN": SPAN, "num_warps": 1, "enable_fp_fusion": True}
    adjoint_kernel[(triton.cdiv(e, LANES), num_chunks, b)](
        x, dt, z, dy, pairs, rates, dt_bias, dt_scale, states, block_states, carries, step_sums,
        *sizes, BLOCK=LANES, ROWS=4, maxnreg=128 if n <= MANY_STATES else 255, **options,
    )  # fmt: skip
    carry_kernel[(triton.cdiv(e, 128), n, b)](
        carries, step_sums, rates, dstate, e, num_chunks, *dstate.stride(),
        N=n, BLOCK=128, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip

    dx, ddt, dz = like(x), like(dt), like(z)
    dA, dD, dbias = new(b, num_chunks, n, e), new(b, num_chunks, e), new(b, num_chunks, e)
    dpairs = new(channel_blocks, b, num_chunks * num_blocks, n, 2, SPAN)
    dscale = new(channel_blocks, b, num_chunks * num_blocks, SPAN) if needed[8] else None
    gradient_kernel[(channel_blocks, num_chunks, b)](
        x, dt, z, dy, pairs, rates, D, dt_bias, dt_scale, block_states, carries,
        dx, ddt, dz, dA, dD, dbias, dpairs, dscale,
        *sizes, LANES=LANES, GROUPS=GROUPS, maxnreg=168, **options,
    )  # fmt: skip

    def over_blocks(parts: torch.Tensor) -> torch.Tensor:
        """(b, blocks, ..., SPAN) -> (b, l, ...)."""
        return parts.movedim(-1, 2).flatten(1, 2)[:, :l]

    dB = dC = None
    if needed[3] or needed[4]:
        dB, dC = over_blocks(dpairs.sum(0)).unbind(-1)
    grads = (
        dx,
        ddt,
        dA.sum((0, 1)).t() if needed[2] else None,
        dB,
        dC,
        dD.sum((0, 1)) if needed[5] else None,
        dz,
        dbias.sum((0, 1)) if needed[7] else None,
        over_blocks(dscale.sum(0)) if dscale is not None else None,
        carries[:, 0].mT if needed[9] else None,
    )
    inputs = (x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state)
    return [
        grad.to(t.dtype).contiguous() if need else x.new_empty(0)
        for grad, t, need in zip(grads, inputs, needed, strict=True)
    ]
