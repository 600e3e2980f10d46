"""The selective scan in Triton, as an op that autograd and torch.compile see through."""

from __future__ import annotations

import torch
from torch import Tensor

from remamba.ops.device import on_device, processors
from remamba.ops.recording import is_recorded, with_gradient
from remamba.ops.scan.torch import selective_scan_torch
from remamba.ops.scan.triton_backward import given, scan_backward
from remamba.ops.scan.triton_elements import SPAN
from remamba.ops.scan.triton_forward import scan_forward

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_STATES = 64
"""With more states than this a channel does not fit a thread's registers."""

PROGRAMS = 16
"""Programs of one warp and 128 registers a thread that run on a multiprocessor at once."""
CHANNELS = 64
SHORTEST, LONGEST = 64, 640
"""Positions of a chunk: shorter ones cost too much apart, longer ones leave processors idle."""


def selective_scan_triton(
    x, dt, A, B, C, D=None, *, z=None, dt_bias=None, dt_scale=None, initial_state=None
) -> tuple[Tensor, Tensor]:
    """selective_scan with lengths already folded into dt_scale, and l > 0. Shapes as there.

    float64 inputs, and more than 64 states a channel, go to selective_scan_torch: the kernels
    compute in float32 and hold a channel's states in registers.
    """
    inputs = (x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state)
    if not fits(*inputs):
        return selective_scan_torch(
            x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_scale=dt_scale, initial_state=initial_state
        )
    x, dt, B, C = rows(x), rows(dt), rows(B), rows(C)
    z = None if z is None else rows(z)
    D = None if D is None else D.contiguous()
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    chunk = chunk_length(*x.shape, x.device)
    run = _recorded if is_recorded(*inputs) else _forward
    return run(x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, chunk)[:2]


def fits(x, dt, A, *others) -> bool:
    """True when the kernels can take these inputs."""
    return A.shape[1] <= MOST_STATES and all(
        t is None or t.dtype in DTYPES for t in (x, dt, A, *others)
    )


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


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_scale: Tensor | None,
    initial_state: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the states before each chunk, for backward."""
    with on_device(x):
        return scan_forward(x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, chunk)


def _fake(x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, chunk):
    b, l, e = x.shape
    n = A.shape[1]
    return (
        x.new_empty(b, l, e),
        x.new_empty(b, e, n, dtype=torch.float32),
        x.new_empty(b, (l + chunk - 1) // chunk, n, e, dtype=torch.float32),
    )


def _backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_scale: Tensor | None,
    initial_state: Tensor | None,
    states: Tensor,
    chunk: int,
    needed: list[bool],
) -> list[Tensor]:
    """The gradients of the ten inputs; empty ones where none is `given`."""
    with on_device(x):
        return scan_backward(
            rows(dy), dstate, x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state,
            states, chunk, needed,
        )  # fmt: skip


def _fake_backward(
    dy, dstate, x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state, states, chunk, needed
):  # fmt: skip
    inputs = (x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state)
    return [
        t.new_empty(t.shape) if there else x.new_empty(0)
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
    grads = backward(dy, dstate, *tensors, states, ctx.chunk, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None


_recorded = with_gradient(
    "remamba::selective_scan_triton", _forward, _backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip
