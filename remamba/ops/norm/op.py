"""Root-mean-square norms: with the residual's sum before it, and gated by groups (Mamba-2)."""

import torch
import torch.nn.functional as F

from remamba.ops.backend import run
from remamba.ops.precision import accumulation_dtype
from remamba.ops.recording import takes_recorded_form


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """total / rms(total) * weight, and total = residual + x (x itself without a residual).

    x, residual (..., d); weight (d,), ones when None. total has the wider dtype of x and residual;
    it is rounded to the weight's dtype, which the norm has, before its mean square is taken in
    float32 (float64 for float64).
    """
    if not x.numel():
        return rms_norm_torch(x, weight, residual=residual, eps=eps)
    return run("rms_norm", x.device, x, weight, residual=residual, eps=eps)


def gated_rms_norm(
    y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, *, groups: int, eps: float
) -> torch.Tensor:
    """v / rms(v) * weight with v = y * silu(z), each group of channels by its own mean square.

    y, z (..., e); weight (e,). v is float32 (float64 for float64); the quotient is
    rounded to y's dtype, and the product has the wider dtype of y and weight.
    """
    if not y.numel():
        return gated_rms_norm_torch(y, z, weight, groups=groups, eps=eps)
    return run("gated_rms_norm", y.device, y, z, weight, groups=groups, eps=eps)


def rms_norm_torch(x, weight=None, *, residual=None, eps) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm by torch's own."""
    total = x if residual is None else residual + x
    rounded = total if weight is None else total.to(weight.dtype)
    return F.rms_norm(rounded, (x.shape[-1],), weight, eps), total


def gated_rms_norm_torch(y, z, weight, *, groups, eps) -> torch.Tensor:
    """gated_rms_norm by torch's own, in place where nothing is differentiated."""
    is_plain = y.dtype == weight.dtype == torch.float32
    if is_plain and not takes_recorded_form(y, z, weight):
        return _gated_in_place(y, z, weight, groups, eps)
    wide = accumulation_dtype(y)
    gated = y.to(wide) * F.silu(z.to(wide))
    grouped = gated.unflatten(-1, (groups, -1))
    normed = F.rms_norm(grouped, (grouped.shape[-1],), None, eps).flatten(-2)
    return weight * normed.to(y.dtype)


def _gated_in_place(y, z, weight, groups, eps) -> torch.Tensor:
    """The same without intermediate copies, which are most of a long prefill's norm."""
    gated = F.silu(z.float()).mul_(y)
    grouped = gated.unflatten(-1, (groups, -1))
    square = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True).square_()
    grouped.mul_(square.div_(grouped.shape[-1]).add_(eps).rsqrt_())
    return gated.mul_(weight)
