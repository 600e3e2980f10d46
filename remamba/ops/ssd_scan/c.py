"""Mamba-2's scan in C (ssd.c), for inference on a CPU."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, as_float, function, side_by_side, unfit
from remamba.ops.scan_inputs import ScanInputs

CHUNK, BLOCK = 32, 32
"""Steps of a chunk, and what a head's channels are padded to at the most, as in the source."""
ARGUMENTS = struct.Struct("12Q20q2d")
"""`struct SsdArguments` of the source."""


def fits(inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int) -> str:
    """Why the kernel cannot take these inputs."""
    if why := unfit(*inputs):
        return why
    if len({t.dtype for t in (inputs.x, inputs.dt, inputs.B, inputs.C)}) > 1:
        return "rows of several dtypes"
    return ""


@limited(fits)
def ssd_c(
    inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int
) -> tuple[Tensor, Tensor]:
    """ssd, for l > 0."""
    dt, dt_scale = inputs.dt, as_float(inputs.dt_scale)
    x, B, C = (side_by_side(t) for t in (inputs.x, inputs.B, inputs.C))
    A, D, bias, first = (
        as_float(t) for t in (inputs.A, inputs.D, inputs.dt_bias, inputs.initial_state)
    )
    assert A is not None
    (b, length, h, p), (g, n), threads = x.shape, B.shape[2:], torch.get_num_threads()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = A.new_empty(b, h, p, n)
    wide = -(-p // BLOCK) * BLOCK
    own = 2 * CHUNK * (n + CHUNK) + 3 * CHUNK * wide
    scratch = A.new_empty(threads * own + b * h * n * wide)
    strides = (stride for t in (x, dt, B, C) for stride in t.stride()[:3])
    function("ssd")(
        ARGUMENTS.pack(
            *(address(t) for t in (x, dt, B, C, A, D, bias, dt_scale, first, y, last, scratch)),
            *strides, b, length, h, p, g, n, TYPES[x.dtype], threads, *dt_limit,
        )
    )  # fmt: skip
    return y, last
