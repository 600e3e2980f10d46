"""One step of either scan in C (state_update.c), for inference on a CPU."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, as_float, function, side_by_side, unfit
from remamba.ops.scan_inputs import ScanInputs

ARGUMENTS = struct.Struct("12Q15q2d")
"""`struct StepArguments` of the source."""
NO_LIMIT = (0.0, float("inf"))


def fits(inputs: ScanInputs, **options: object) -> str:
    """Why the kernels cannot take these inputs."""
    if why := unfit(*inputs):
        return why
    if inputs.initial_state is not None and inputs.initial_state.dtype != torch.float32:
        return "states not of float32"
    rows = (inputs.x, inputs.dt, inputs.z, inputs.B, inputs.C)
    if len({t.dtype for t in rows if t is not None}) > 1:
        return "rows of several dtypes"
    return ""


@limited(fits)
def selective_state_update_c(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """selective_state_update."""
    return _step("selective_state_update", inputs, NO_LIMIT)


@limited(fits)
def ssd_state_update_c(
    inputs: ScanInputs, *, dt_limit: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """ssd_state_update."""
    return _step("ssd_state_update", inputs, dt_limit)


def _step(name: str, inputs: ScanInputs, dt_limit: tuple[float, float]) -> tuple[Tensor, Tensor]:
    x, dt, B, C = (side_by_side(t) for t in (inputs.x, inputs.dt, inputs.B, inputs.C))
    z = None if inputs.z is None else side_by_side(inputs.z)
    A, D, bias, scale, state = (
        as_float(t)
        for t in (inputs.A, inputs.D, inputs.dt_bias, inputs.dt_scale, inputs.initial_state)
    )
    assert A is not None and state is not None, "a step starts from a state"
    b, h, *head = x.shape
    groups = B.shape[1] if head else 1
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    after = torch.empty_like(state)
    function(name)(
        ARGUMENTS.pack(
            *(address(t) for t in (x, dt, z, B, C, A, D, bias, scale, state, y, after)),
            x.stride(0), x.stride(1), dt.stride(0), 0 if z is None else z.stride(0),
            B.stride(0), B.stride(1), C.stride(0), C.stride(1),
            b, h, head[0] if head else 1, groups, state.shape[-1], TYPES[x.dtype],
            torch.get_num_threads(), *dt_limit,
        )
    )  # fmt: skip
    return y, after
