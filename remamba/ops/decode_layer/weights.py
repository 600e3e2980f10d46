"""What a block of a decode step is made of, as tensors: the weights that its kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_STATE = 256
"""Largest state size that the kernels take: a row of it lies in registers."""


@dataclass(frozen=True)
class BlockWeights:
    """What both kinds of block have, of one dtype; dt_bias, A_log and D may have others."""

    norm: torch.Tensor
    """(d,)"""
    norm_eps: float
    in_proj: torch.Tensor
    """(2e, d), rows of x first, then of the gate z; Mamba-2: (2e + 2gn + h, d), of z, x, B, C and
    dt."""
    in_bias: torch.Tensor | None
    conv: torch.Tensor
    """(e, 1, w); Mamba-2: (e + 2gn, 1, w)"""
    conv_bias: torch.Tensor | None
    dt_bias: torch.Tensor
    """(e,); Mamba-2: (h,)"""
    A_log: torch.Tensor
    """(e, n); Mamba-2: (h,)"""
    D: torch.Tensor
    """(e,); Mamba-2: (h,)"""
    out_proj: torch.Tensor
    """(d, e)"""
    out_bias: torch.Tensor | None

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in vars(self).values() if isinstance(t, torch.Tensor)]


@dataclass(frozen=True)
class MambaWeights(BlockWeights):
    """A Mamba (or Falcon-Mamba) block."""

    x_proj: torch.Tensor
    """(r + 2n, e)"""
    dt_proj: torch.Tensor
    """(e, r)"""
    mixer_eps: float | None
    """Falcon-Mamba's norms of dt, B and C; None: there are none."""


@dataclass(frozen=True)
class Mamba2Weights(BlockWeights):
    """A Mamba-2 block."""

    dt_limit: tuple[float, float]
    gated_norm: torch.Tensor
    """(e,)"""
    gated_eps: float
    groups: int
