"""What goes into a scan's step: ReMamba's change of dt (Eq. 8, before softplus), and A."""

import torch

from remamba.ops.backend import run


def adapt_dt(
    dt: torch.Tensor,
    selected: torch.Tensor,
    theta: torch.Tensor,
    *,
    alpha: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """alpha * (dt - bias) + theta + bias where selected, and dt elsewhere, bit for bit.

    dt (b, l, c); selected (b, l) bool; theta, bias (c,); alpha (b, l), 1 when None. The result has
    dt's shape and dtype. Where nothing is differentiated it may be dt itself, changed in place.
    """
    if not dt.numel():
        return adapt_dt_torch(dt, selected, theta, alpha=alpha, bias=bias)
    return run("adapt_dt", dt.device, dt, selected, theta, alpha=alpha, bias=bias)


def decay_rate(A_log: torch.Tensor) -> torch.Tensor:
    """A = -exp(A_log), float32 (float64 for float64), of A_log's shape; negative by construction.

    Computed at every call: a copy kept beside the parameter would have to notice every way in
    which a parameter can change, and a captured graph could not.
    """
    return run("decay_rate", A_log.device, A_log)


def adapt_dt_torch(dt, selected, theta, *, alpha=None, bias=None) -> torch.Tensor:
    """adapt_dt, computed at every position and masked: on a CPU the extra passes cost nothing
    measurable."""
    change = theta.expand_as(dt)
    if alpha is not None:
        projected = dt if bias is None else dt - bias
        change = change + (alpha.unsqueeze(-1) - 1) * projected
    return torch.where(selected.unsqueeze(-1), dt + change, dt).to(dt.dtype)


def decay_rate_torch(A_log: torch.Tensor) -> torch.Tensor:
    """decay_rate by torch's own."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
