"""The selective scan in Triton, as an op that autograd and torch.compile see through."""

from __future__ import annotations

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.device import on_device, processors
from remamba.ops.recording import is_recorded, with_gradient
from remamba.ops.scan.triton_backward import given, scan_backward
from remamba.ops.scan.triton_elements import SPAN
from remamba.ops.scan.triton_forward import scan_forward
from remamba.ops.scan_inputs import ScanInputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_STATES = 64
"""With more states than this a channel does not fit a thread's registers."""

PROGRAMS = 16
"""Programs of one warp and 128 registers a thread that run on a multiprocessor at once."""
CHANNELS = 64
SHORTEST, LONGEST = 64, 640
"""Positions of a chunk: shorter ones cost too much apart, longer ones leave processors idle."""


def fits(inputs: ScanInputs) -> str:
    """Why the kernels cannot take these inputs: they compute in float32, and hold a channel's
    states in registers."""
    if inputs.A.shape[1] > MOST_STATES:
        return f"more than {MOST_STATES} states a channel"
    if not all(t is None or t.dtype in DTYPES for t in inputs):
        return "a dtype that is not float32, bfloat16 or float16"
    return ""


@limited(fits)
def selective_scan_triton(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """selective_scan, for l > 0."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state = inputs
    dense = ScanInputs(
        rows(x), rows(dt), A, rows(B), rows(C), None if D is None else D.contiguous(),
        None if z is None else rows(z), None if dt_bias is None else dt_bias.contiguous(),
        dt_scale, initial_state,
    )  # fmt: skip
    chunk = chunk_length(*x.shape, x.device)
    if is_recorded(*inputs):
        return _recorded(*dense, chunk)[:2]
    return _forward(dense, chunk)[:2]


def rows(t: Tensor) -> Tensor:
    """The tensor itself where its last axis is dense: slices of a projection are not copied."""
    return t if t.stride(-1) == 1 else t.contiguous()


def chunk_length(b: int, l: int, e: int, device: torch.device) -> int:
    """Positions of a chunk, so that the chunks of all channels fill the GPU's processors evenly."""
    programs = b * -(-e // CHANNELS)
    chunks = max(1, PROGRAMS * processors(device) // programs)
    length = -(-l // chunks)
    if chunks > 1:
        length = -(-length // -(-length // LONGEST))
    return max(SHORTEST, -(-length // SPAN) * SPAN)


def _forward(inputs: ScanInputs, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the states before each chunk, for backward."""
    with on_device(inputs.x):
        return scan_forward(inputs, chunk)


def _fake(inputs, chunk):
    x, (b, l, e), n = inputs.x, inputs.x.shape, inputs.A.shape[1]
    return (
        x.new_empty(b, l, e),
        x.new_empty(b, e, n, dtype=torch.float32),
        x.new_empty(b, (l + chunk - 1) // chunk, n, e, dtype=torch.float32),
    )


def _backward(
    inputs: ScanInputs, states: Tensor, dy: Tensor, dstate: Tensor, chunk: int, needed: list[bool]
) -> list[Tensor]:
    """The gradients of the inputs; empty ones where none is `given`."""
    with on_device(inputs.x):
        return scan_backward(inputs, rows(dy), dstate, states, chunk, needed)


def _fake_backward(inputs, states, dy, dstate, chunk, needed):
    return [
        t.new_empty(t.shape) if there else inputs.x.new_empty(0)
        for t, there in zip(inputs, given(inputs, needed), strict=True)
    ]


def _save(ctx, inputs, output):
    *tensors, ctx.chunk = inputs
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(*tensors, states)


def _gradients(ctx, backward, dy, dstate, _):
    *tensors, states = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:10])
    grads = backward(*tensors, states, dy, dstate, ctx.chunk, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None


_recorded = with_gradient(
    "remamba::selective_scan_triton", _forward, _backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip
