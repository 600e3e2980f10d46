"""The selective scan of Mamba as the paper writes it."""

import torch
import torch.nn.functional as F

from remamba.ops.precision import accumulation_dtype
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import time_step


def reference(inputs: ScanInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """selective_scan step by step; gradients are torch's own."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state = inputs
    dtype = accumulation_dtype(x)
    step = time_step(dt, dt_bias, dt_scale, dtype)  # (b, l, e)
    u, A, B, C = x.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
    if initial_state is None:
        initial_state = u.new_zeros(x.shape[0], *A.shape)
    state = initial_state.to(dtype)

    y = torch.zeros_like(u)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(torch.einsum("be,en->ben", step[:, t], A))
        state = decay * state + torch.einsum("be,bn,be->ben", step[:, t], B[:, t], u[:, t])
        outputs.append(torch.einsum("ben,bn->be", state, C[:, t]))
    if outputs:
        y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
