"""The tensors of a scan, as our own functions pass them on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """What a scan or a step of one reads; shapes are those of the public op.

    Lengths have been folded into dt_scale. Mamba-2's scan has no gate: its z is None.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    dt_scale: Tensor | None = None
    initial_state: Tensor | None = None

    def piece(self, at: slice, initial_state: Tensor | None) -> ScanInputs:
        """The inputs of the positions `at` alone, which start from initial_state."""
        z, dt_scale = (None if t is None else t[:, at] for t in (self.z, self.dt_scale))
        return ScanInputs(
            self.x[:, at], self.dt[:, at], self.A, self.B[:, at], self.C[:, at], self.D,
            z, self.dt_bias, dt_scale, initial_state,
        )  # fmt: skip
