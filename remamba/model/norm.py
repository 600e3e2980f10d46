"""Root-mean-square norms as modules, plain and gated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remamba.ops import gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in the weight's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1.0)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, residual (..., d) -> the norm of their sum, and the sum (x without a residual)."""
        return rms_norm(x, self.weight, residual=residual, eps=self.eps)


class GatedRMSNorm(nn.Module):
    """RMS norm of y * silu(z), each group of channels by its own mean square (Mamba-2)."""

    def __init__(self, size: int, groups: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups
        self.eps = eps

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1.0)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., e) -> (..., e)."""
        return gated_rms_norm(y, z, self.weight, groups=self.groups, eps=self.eps)
