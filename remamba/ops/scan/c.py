"""The selective scan in C (selective_scan.c), for inference on a CPU."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, as_float, function, side_by_side, unfit
from remamba.ops.scan_inputs import ScanInputs

WIDTH, STEPS = 16, 32
"""Channels of a tile, and positions that it goes through at a time, as in the source."""
ARGUMENTS = struct.Struct("13Q16q")
"""`struct ScanArguments` of the source."""


def fits(inputs: ScanInputs) -> str:
    """Why the kernel cannot take these inputs."""
    if why := unfit(*inputs):
        return why
    rows = (inputs.x, inputs.dt, inputs.B, inputs.C, inputs.z)
    if len({t.dtype for t in rows if t is not None}) > 1:
        return "rows of several dtypes"
    return ""


@limited(fits)
def selective_scan_c(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """selective_scan, for l > 0."""
    dt_scale = as_float(inputs.dt_scale)
    x, dt, B, C = (side_by_side(t) for t in (inputs.x, inputs.dt, inputs.B, inputs.C))
    z = None if inputs.z is None else side_by_side(inputs.z)
    A, D, bias, first = (
        as_float(t) for t in (inputs.A, inputs.D, inputs.dt_bias, inputs.initial_state)
    )
    assert A is not None
    (b, length, e), n, threads = x.shape, A.shape[1], torch.get_num_threads()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = A.new_empty(b, e, n)
    tiles = b * -(-e // WIDTH)
    scratch = A.new_empty(2 * n * (tiles * WIDTH + threads * STEPS))
    strides = (s for t in (x, dt, z, B, C) for s in ((0, 0) if t is None else t.stride()[:2]))
    function("selective_scan")(
        ARGUMENTS.pack(
            *(address(t) for t in (x, dt, z, B, C, A, D, bias, dt_scale, first, y, last, scratch)),
            *strides, b, length, e, n, TYPES[x.dtype], threads,
        )
    )  # fmt: skip
    return y, last
