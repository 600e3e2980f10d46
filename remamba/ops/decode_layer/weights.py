"""What a block of a decode step is made of, as tensors: the weights that its kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch

MOST_STATE = 256
"""Largest state size that the kernels take: a row of it lies in registers."""


class MambaWeights(NamedTuple):
    """A Mamba (or Falcon-Mamba) block; all of one dtype but the small ones, which may differ."""

    norm: torch.Tensor
    """(d,)"""
    norm_eps: float
    in_proj: torch.Tensor
    """(2e, d), rows of x first, then of the gate z."""
    in_bias: torch.Tensor | None
    conv: torch.Tensor
    """(e, 1, w)"""
    conv_bias: torch.Tensor | None
    x_proj: torch.Tensor
    """(r + 2n, e)"""
    dt_proj: torch.Tensor
    """(e, r)"""
    dt_bias: torch.Tensor
    A_log: torch.Tensor
    """(e, n)"""
    D: torch.Tensor
    out_proj: torch.Tensor
    """(d, e)"""
    out_bias: torch.Tensor | None
    mixer_eps: float | None
    """Falcon-Mamba's norms of dt, B and C; None: there are none."""


class Mamba2Weights(NamedTuple):
    """A Mamba-2 block."""

    norm: torch.Tensor
    """(d,)"""
    norm_eps: float
    in_proj: torch.Tensor
    """(2e + 2gn + h, d), rows of z, x, B, C and dt."""
    in_bias: torch.Tensor | None
    conv: torch.Tensor
    """(e + 2gn, 1, w)"""
    conv_bias: torch.Tensor | None
    dt_bias: torch.Tensor
    """(h,)"""
    dt_limit: tuple[float, float]
    A_log: torch.Tensor
    D: torch.Tensor
    gated_norm: torch.Tensor
    """(e,)"""
    gated_eps: float
    groups: int
    out_proj: torch.Tensor
    """(d, e)"""
    out_bias: torch.Tensor | None
