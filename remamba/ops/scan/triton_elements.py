"""What the kernels of the selective scan share: the gate, packed B and C, hints."""

import torch
import triton
import triton.language as tl

from remamba.ops.time_step.triton_softplus import (
    INTERPRETED,
    LOG2_E,
    reciprocal,
    softplus,
)
from remamba.ops.triton_launch import launched

LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
# the kernels that go from chunk to chunk load so many at once: else each waits for the one before
LINKED: tl.constexpr = tl.constexpr(8)

# arguments whose values a kernel is not compiled for anew
SIZES = ("l", "l_padded", "rows", "chunk", "num_chunks", "scale_b", "scale_l")
# a chunk's length is a multiple of it: so many steps the backward kernels take at once
SPAN = 8
# up to so many states a channel, two channels of a thread fit its registers in the forward kernels
MANY_STATES = 16


@triton.jit
def sigmoid(v):
    return reciprocal(1.0 + tl.exp2(v * -LOG2_E))


@triton.jit
def load_channels(parameter, d, there, BLOCK: tl.constexpr):
    """A parameter of the channels d as float32, zeros where there is none."""
    found = tl.zeros([BLOCK], tl.float32)
    if parameter is not None:
        found = tl.load(parameter + d, mask=there, other=0.0).to(tl.float32)
    return found


@triton.jit
def time_step(v, dt_scale, scale_at, there):
    """softplus(v), scaled by what lies scale_at; 0 where the position is not `there`."""
    step, _ = softplus(v)
    if dt_scale is not None:
        step *= tl.load(dt_scale + scale_at, mask=there)
    return tl.where(there, step, 0.0)


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
def prefetch_rows(
    base, column, e, row_stride: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, HINTS: tl.constexpr,
):  # fmt: skip
    """Asks for ROWS rows of WIDTH channels from column on, those that there are, by HINTS hints."""
    i = tl.arange(0, HINTS)
    channel = tl.minimum(column + (i % (HINTS // ROWS)) * (WIDTH * ROWS // HINTS), e - 1)
    prefetch(base + (i // (HINTS // ROWS)) * row_stride + channel)


@triton.jit
def prefetch_pairs(base, N: tl.constexpr, ROWS: tl.constexpr, HINTS: tl.constexpr):
    """Asks for the pairs of ROWS positions."""
    prefetch(base + tl.arange(0, HINTS) * (ROWS * N) // HINTS)


@launched
@triton.jit(do_not_specialize=SIZES)
def pack_kernel(
    B, C, pairs, rows, l, l_padded, B_b, B_l, C_b, C_l,
    N: tl.constexpr, N_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """B, C (b, l, n) -> pairs (b, l_padded, n, 2) float32, zero from l on."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, N_BLOCK)[None, :]
    b, t = row // l_padded, row % l_padded
    inside = (row < rows) & (n < N)
    there = inside & (t < l)
    to = pairs + (row * N + n) * 2
    B_t = tl.load(B + b * B_b + t * B_l + n, mask=there, other=0.0)
    C_t = tl.load(C + b * C_b + t * C_l + n, mask=there, other=0.0)
    tl.store(to, B_t.to(tl.float32), mask=inside)
    tl.store(to + 1, C_t.to(tl.float32), mask=inside)


def pack(B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """(b, l rounded up, n) int64: float32 B in a word's low half, C in the high one; 0 from l on.

    One load then gives both, and the rows past the end are read like any other.
    """
    b, l, n = B.shape
    l_padded = triton.cdiv(l, SPAN) * SPAN
    pairs = torch.empty(b, l_padded, n, dtype=torch.int64, device=B.device)
    rows = 64
    pack_kernel[(triton.cdiv(b * l_padded, rows),)](
        B, C, pairs.view(torch.float32), b * l_padded, l, l_padded,
        *B.stride()[:2], *C.stride()[:2],
        N=n, N_BLOCK=triton.next_power_of_2(n), ROWS=rows, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return pairs


@triton.constexpr_function
def _fold_code(mask):
    """PTX: a lane keeps one of two values, sends the other to its partner, adds what it gets."""
    return f"""{{
        .reg .pred upper;
        .reg .b32 kept, sent;
        setp.ne.u32 upper, $3, 0;
        selp.b32 kept, $2, $1, upper;
        selp.b32 sent, $1, $2, upper;
        shfl.sync.bfly.b32 sent, sent, {mask}, 31, 0xffffffff;
        add.f32 $0, kept, sent;
    }}"""


@triton.constexpr_function
def _butterfly_code(mask):
    """PTX: the value and that of the lane's partner, added."""
    return f"""{{
        .reg .b32 other;
        shfl.sync.bfly.b32 other, $1, {mask}, 31, 0xffffffff;
        add.f32 $0, $1, other;
    }}"""


@triton.jit
def lane_sums(values, COUNT: tl.constexpr, LANES: tl.constexpr):
    """(sums, index): in each lane the sum over all lanes of values[index]; COUNT is a power of 2.

    values: COUNT tensors of LANES = 32 numbers, one a lane of a single warp. Halving the values at
    each exchange takes COUNT + 5 shuffles where COUNT sums apart take 5 COUNT. Which lane holds
    which channel does not matter, so a compiler's choice of layout cannot make it wrong.
    """
    lane = tl.arange(0, LANES)
    if INTERPRETED:
        index = lane * COUNT // LANES
        sums = tl.zeros([LANES], tl.float32)
        for i in tl.static_range(COUNT):
            sums = tl.where(index == i, tl.sum(values[i], 0), sums)
        return sums, index
    else:
        lane = tl.inline_asm_elementwise(
            "mov.u32 $0, %laneid;", "=r,r", [lane], dtype=tl.int32, is_pure=True, pack=1
        )
        FOLDS: tl.constexpr = COUNT.bit_length() - 1
        for fold in tl.static_range(FOLDS):
            folded = ()
            for i in tl.static_range(COUNT >> (fold + 1)):
                folded += (
                    tl.inline_asm_elementwise(
                        _fold_code(LANES >> (fold + 1)),
                        "=r,r,r,r",
                        [
                            values[i],
                            values[i + (COUNT >> (fold + 1))],
                            lane & (LANES >> (fold + 1)),
                        ],
                        dtype=tl.float32,
                        is_pure=True,
                        pack=1,
                    ),
                )
            values = folded
        sums = values[0]
        for fold in tl.static_range(5 - FOLDS):
            sums = tl.inline_asm_elementwise(
                _butterfly_code(LANES >> (FOLDS + fold + 1)),
                "=r,r",
                [sums],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )
        return sums, lane * COUNT // LANES
