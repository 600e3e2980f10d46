"""The selective scan of Mamba: the public op and its reference."""

import torch
import torch.nn.functional as F

from remamba.ops.backend import implementation
from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.time_step.lengths import fold_lengths, time_step


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    *,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (b, l, e) in x's dtype and the final state (b, e, n) of Mamba's selective scan.

        step = softplus(dt + dt_bias) * dt_scale
        h_t  = exp(step_t * A) * h_{t-1} + step_t * B_t * x_t
        y_t  = (C_t . h_t + D * x_t) * silu(z_t)

    Mamba, arXiv 2312.00752, Eq. 2 and Algorithm 2; dt_scale is alpha of ReMamba's Eq. 8 in its
    exact form, 1 when None.

    x, dt, z (b, l, e); A (e, n), negative; B, C (b, l, n); D, dt_bias (e,); dt_scale (b, l);
    lengths (b,) integers; initial_state (b, e, n), zeros when None. At or past a row's length the
    state passes unchanged and y is finite but means nothing. State and sums are float32 (float64
    for float64 x), under autocast too.
    """
    with without_autocast(x):
        dt_scale = fold_lengths(dt_scale, lengths, x, accumulation_dtype(x))
        run = implementation("selective_scan", x.device) if x.numel() else selective_scan_ref
        return run(
            x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_scale=dt_scale, initial_state=initial_state
        )


def selective_scan_ref(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    *,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """selective_scan step by step, as the paper writes it; gradients are torch's own."""
    dtype = accumulation_dtype(x)
    dt_scale = fold_lengths(dt_scale, lengths, x, dtype)
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
