"""The scans' time step: from dt as projected to the step that discretizes A and B."""

import math

import torch
import torch.nn.functional as F

# exp(v) = exp2(v * LOG2_E): on a CPU torch's exp2 takes half the time of its exp
LOG2_E = 1 / math.log(2)


def time_step(
    dt: torch.Tensor,
    dt_bias: torch.Tensor | None,
    dt_scale: torch.Tensor | None,
    dtype: torch.dtype,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """softplus(dt + dt_bias), clamped to dt_limit, times dt_scale: Delta of 2312.00752 Alg. 2.

    dt (b, l, c) or (b, c); dt_bias (c,); dt_scale: dt's shape without its last axis. Returns dt's
    shape in dtype. The factor comes after softplus: 0 leaves the state as it is, ReMamba's alpha
    (Eq. 8) makes a token count less.
    """
    dt = dt.to(dtype)
    step = F.softplus(dt if dt_bias is None else dt + dt_bias.to(dtype))
    if dt_limit[0] > 0.0 or dt_limit[1] < float("inf"):
        step = step.clamp(*dt_limit)
    return step if dt_scale is None else step * dt_scale.to(dtype).unsqueeze(-1)


def fold_lengths(
    dt_scale: torch.Tensor | None, lengths: torch.Tensor | None, x: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """dt_scale (b, l), 0 at or past lengths (b,), so that a pad passes the state; x (b, l, ...)."""
    if lengths is None:
        return dt_scale
    real = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)
    return real.to(dtype) if dt_scale is None else dt_scale.to(dtype) * real
