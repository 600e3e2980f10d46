"""What the kernels of the selective scan share: approximate functions, packed B and C, hints."""

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def reciprocal(v):
    """1 / v for v >= 1, to 1 ulp; 0 at infinity."""
    if INTERPRETED:
        return 1.0 / v
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [v], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def log2(v):
    """log2(v) for v > 1: its absolute error is 2^-22, and relative where v is near 1 bad."""
    if INTERPRETED:
        return tl.log2(v)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=r,r", [v], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def softplus(v):
    """log(1 + e^v) and e^min(v, 20); the first to 2e-6 relative for every v, as small as e^v."""
    power = tl.exp2(tl.minimum(v, 20.0) * LOG2_E)
    # log2(1 + power) has lost the digits of a small power: there, the series of log(1 + power)
    series = 0.25 - power * (0.2 - power * 0.16666667)
    series = power * (1.0 - power * (0.5 - power * (0.33333333 - power * series)))
    soft = tl.where(power < 0.125, series, log2(1.0 + power) * LN_2)
    return tl.where(v > 20.0, v, soft), power


@triton.jit
def sigmoid(v):
    return reciprocal(1.0 + tl.exp2(v * -LOG2_E))


@triton.jit
def load_pairs(pair_at, N: tl.constexpr):
    """B and C of one position: two tuples of N float32 scalars, from words of `pack_kernel`."""
    B = ()
    C = ()
    for n in tl.static_range(N):
        pair = tl.load(pair_at + n)
        B += (pair.to(tl.int32).to(tl.float32, bitcast=True),)
        C += ((pair >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
    return B, C


@triton.jit
def prefetch(address):
    """Asks for the lines at these addresses; they must lie inside tensors. Compiled only."""
    tl.inline_asm_elementwise(
        "prefetch.global.L1 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_rows(base, row_stride, column, e, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Asks for ROWS rows of BLOCK channels from column on; channels past e are left out."""
    PARTS: tl.constexpr = BLOCK // ROWS
    i = tl.arange(0, BLOCK)
    channel = column + (i % PARTS) * ROWS
    channel = tl.where(channel < e, channel, column)
    prefetch(base + (i // PARTS).to(tl.int64) * row_stride + channel)


@triton.jit
def prefetch_pairs(base, rows, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Asks for the pairs of ROWS positions, or of as many as there are."""
    i = tl.arange(0, BLOCK) * (ROWS * N) // BLOCK
    prefetch(base + tl.minimum(i, rows * N - 1))


@triton.jit
def pack_kernel(
    B, C, pairs, rows, l, B_b, B_l, C_b, C_l,
    N: tl.constexpr, N_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """B, C (b, l, n) -> pairs (b, l, n, 2) float32, so that one load gives both."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, N_BLOCK)[None, :]
    there = (row < rows) & (n < N)
    b, t = row // l, row % l
    to = pairs + (row * N + n) * 2
    tl.store(to, tl.load(B + b * B_b + t * B_l + n, mask=there).to(tl.float32), mask=there)
    tl.store(to + 1, tl.load(C + b * C_b + t * C_l + n, mask=there).to(tl.float32), mask=there)
