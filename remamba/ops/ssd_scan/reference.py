"""The scan of Mamba-2 (state space duality) as the paper writes it."""

import torch

from remamba.ops.precision import accumulation_dtype
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import time_step


def reference(
    inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd step by step, as a recurrence; gradients are torch's own. chunk_size is ignored."""
    x, dt, A, B, C, D, _, dt_bias, dt_scale, initial_state = inputs
    dtype = accumulation_dtype(x)
    step = time_step(dt, dt_bias, dt_scale, dtype, dt_limit)  # (b, l, h)
    heads_per_group = x.shape[2] // B.shape[2]
    u, A = x.to(dtype), A.to(dtype)
    B, C = (t.to(dtype).repeat_interleave(heads_per_group, dim=2) for t in (B, C))  # (b, l, h, n)
    if initial_state is None:
        initial_state = u.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])
    state = initial_state.to(dtype)

    y = torch.zeros_like(u)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t] * A)[..., None, None]
        state = decay * state + torch.einsum("bh,bhp,bhn->bhpn", step[:, t], u[:, t], B[:, t])
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]))
    if outputs:
        y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    return y.to(x.dtype), state
