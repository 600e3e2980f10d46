"""Layers that the mixers are made of: norms, convolution, projection."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from remamba.configuration_remamba import ReMambaConfig
from remamba.ops import causal_conv, gated_rms_norm, rms_norm
from remamba.ops.recording import takes_recorded_form


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


class CausalConv1d(nn.Module):
    """Short depthwise convolution with SiLU and a carried window; parameters as in nn.Conv1d."""

    def __init__(self, channels: int, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(
        self, x: Tensor, lengths: Tensor | None, window: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (b, l, e) -> y (b, l, e) and the window (b, w - 1, e) at each row's end."""
        return causal_conv(x, self.weight.squeeze(1), self.bias, lengths=lengths, window=window)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight may be read as numbers; quantised ones are for their module's call alone."""
    return type(weight) in (nn.Parameter, Tensor)


FEW_ROWS = 16
"""Most rows for which a product costs the reading of its weight, not the arithmetic."""
LARGE_WEIGHT = 2**19
"""Elements of a weight that no longer stays in cache; for smaller ones nn.Linear is as fast."""


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
            or not is_plain(self.weight)
            or self.weight.dtype != torch.float32
            or self.weight.numel() < LARGE_WEIGHT
            or takes_recorded_form(x, self.weight, self.bias)
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


def projection(config: ReMambaConfig, inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A Projection; an nn.Linear where the weights are quantised.

    bitsandbytes replaces modules whose class is nn.Linear itself, and no others.
    """
    is_quantised = getattr(config, "quantization_config", None) is not None
    return (nn.Linear if is_quantised else Projection)(inputs, outputs, bias=bias)


def vocabulary_logits(lm_head: nn.Module, hidden: Tensor) -> Tensor:
    """hidden (..., d) -> logits (..., vocab), in the dtype of a head that is not quantised.

    The dtype of a quantised weight is that of its storage and says nothing of the arithmetic.
    """
    weight = cast(Tensor, lm_head.weight)
    return lm_head(hidden.to(weight.dtype) if is_plain(weight) else hidden)
