"""The scan of Mamba-2 (state space duality): the public op and its reference."""

import torch

from remamba.ops.backend import implementation
from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.time_step.lengths import fold_lengths, time_step


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    *,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    dt_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (b, l, h, p) in x's dtype and the final state (b, h, p, n) of Mamba-2's scan.

        step = clamp(softplus(dt + dt_bias), *dt_limit) * dt_scale
        h_t  = exp(step_t * A) * h_{t-1} + step_t * x_t B_t^T
        y_t  = h_t C_t + D * x_t

    Mamba-2, arXiv 2405.21060, sections 2 and 6; dt_scale is alpha of ReMamba's Eq. 8 in its exact
    form, 1 when None.

    x (b, l, h, p); dt (b, l, h); A (h,), negative; B, C (b, l, g, n), group i serving heads
    i*h/g to (i+1)*h/g; D, dt_bias (h,); dt_scale (b, l); lengths (b,) integers; initial_state
    (b, h, p, n), zeros when None. At or past a row's length the state passes unchanged and y is
    finite but means nothing. State and sums are float32 (float64 for float64 x), under autocast
    too. chunk_size changes speed, never the result.
    """
    with without_autocast(x):
        dt_scale = fold_lengths(dt_scale, lengths, x, accumulation_dtype(x))
        run = implementation("ssd", x.device, x.dtype) if x.numel() else ssd_ref
        return run(
            x, dt, A, B, C, D, dt_bias=dt_bias, dt_limit=dt_limit, dt_scale=dt_scale,
            initial_state=initial_state, chunk_size=chunk_size,
        )  # fmt: skip


def ssd_ref(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    *,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    dt_scale: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd step by step, as a recurrence; gradients are torch's own. chunk_size is ignored."""
    dtype = accumulation_dtype(x)
    dt_scale = fold_lengths(dt_scale, lengths, x, dtype)
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
