"""nn.Linear that is also fast where a decode step needs it: a few rows on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW_ROWS = 16
"""Up to so many rows, reading the weight is the cost and not the arithmetic."""
LARGE_WEIGHT = 2**19
"""Smaller weights stay in cache, where nn.Linear is as good."""


class Projection(nn.Linear):
    """x W^T + bias: an nn.Linear in every respect, adapters included.

    torch multiplies a single float32 row on one thread, and 2 to 16 rows badly. Without gradients
    one row is cut among the threads by the rows of W, and few rows are multiplied from the other
    side (`remamba bench generate --what decode` shows what that gives).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        rows = x.numel() // max(x.shape[-1], 1)
        if (
            not 1 <= rows <= FEW_ROWS
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or self.weight.numel() < LARGE_WEIGHT
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        flat = x.reshape(rows, -1)
        threads = torch.get_num_threads()
        if rows > 1:
            y = (self.weight @ flat.t()).t()
        elif self.out_features % threads == 0:
            parts = self.weight.view(threads, -1, self.in_features)
            y = (flat.expand(threads, 1, -1) @ parts.mT).view(1, -1)
        else:
            return super().forward(x)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)
