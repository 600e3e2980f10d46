"""Stage 2, selective adaption: the kept positions' scores enter the time step (Eq. 8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from remamba import ops


class Adaption(NamedTuple):
    """What stage 2 changes in the time step at the kept positions."""

    alpha: Tensor
    """(b, l) alpha of the kept positions; 1 at every other position."""
    selected: Tensor
    """(b, l) bool, True at the kept positions."""
    exact: bool
    """True: alpha scales Delta itself, after softplus. False: alpha scales W x (as released)."""

    def piece(self, begin: int, end: int) -> Adaption:
        return Adaption(self.alpha[:, begin:end], self.selected[:, begin:end], self.exact)

    @property
    def dt_scale(self) -> Tensor | None:
        """(b, l) factor after softplus for the scans, or None when Delta is left alone there."""
        return self.alpha if self.exact else None


class DtAdaption(nn.Module):
    """Theta of one layer, in a module of its own so that adapters can name it."""

    def __init__(self, channels: int):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(channels))

    def forward(self, dt: Tensor, adaption: Adaption, bias: Tensor | None = None) -> Tensor:
        """The time step before softplus: alpha * W x + Theta + bias where kept (Eq. 8).

        Alpha does not scale the bias, as in the authors' code. Positions that were not kept are
        returned as they came, bit for bit; where nothing is differentiated, `dt` may be changed in
        place.

        Args:
            dt: (b, l, e) or (b, l, h), W x + bias (or W x alone when `bias` is None).
            adaption: alpha and the kept positions, (b, l).
            bias: (e,) the part of `dt` that alpha must not scale.
        """
        alpha = None if adaption.exact else adaption.alpha
        return ops.adapt_dt(dt, adaption.selected, self.theta, alpha=alpha, bias=bias)
