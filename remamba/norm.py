"""Root-mean-square norms, plain and gated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in the weight's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        return F.rms_norm(x.to(dtype), (x.shape[-1],), self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """RMS norm of y * silu(z), each group of channels by its own mean square (Mamba-2)."""

    def __init__(self, size: int, groups: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., e) -> (..., e) in y's dtype."""
        if not torch.is_grad_enabled() and y.dtype == self.weight.dtype == torch.float32:
            return self._in_place(y, z)
        gated = y.float() * F.silu(z.float())
        grouped = gated.unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(grouped, (grouped.shape[-1],), None, self.eps).flatten(-2)
        return self.weight * normed.to(y.dtype)

    def _in_place(self, y: Tensor, z: Tensor) -> Tensor:
        """The same without intermediate copies, which are most of a long prefill's norm."""
        gated = F.silu(z.float()).mul_(y)
        grouped = gated.unflatten(-1, (self.groups, -1))
        square = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True).square_()
        grouped.mul_(square.div_(grouped.shape[-1]).add_(self.eps).rsqrt_())
        return gated.mul_(self.weight)
