"""The root-mean-square norms in C (rms_norm.c), for inference on a CPU."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, function, unfit

NORM = struct.Struct("5Q8qfi")
"""`struct NormArguments` of the source."""
GATED = struct.Struct("4Q8qfi")
"""`struct GatedArguments` of the source."""
WIDEST = 2**16
"""Channels of a group that a thread's stack holds."""


def rows_of(t: Tensor) -> Tensor:
    """t (..., d) as (rows, d), whose rows lie side by side; a copy where they do not."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def fits_norm(x: Tensor, weight: Tensor | None, *, residual: Tensor | None, eps: float) -> str:
    """Why the kernel cannot take these inputs."""
    if residual is not None and residual.shape != x.shape:
        return "a residual of another shape"
    return unfit(x, weight, residual)


@limited(fits_norm)
def rms_norm_c(
    x: Tensor, weight: Tensor | None = None, *, residual: Tensor | None = None, eps: float
) -> tuple[Tensor, Tensor]:
    """rms_norm, for inputs that hold something."""
    total = x
    wide = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    if residual is not None:
        total = torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format)
    normed = wide if weight is None else weight.dtype
    y = torch.empty_like(x, dtype=normed, memory_format=torch.contiguous_format)
    rows = rows_of(x)
    added = rows if residual is None else rows_of(residual)
    weight = None if weight is None else weight.contiguous()
    function("rms_norm")(
        NORM.pack(
            address(rows), 0 if residual is None else address(added), address(weight), address(y),
            address(total), rows.stride(0), added.stride(0), *rows.shape, TYPES[x.dtype],
            TYPES[added.dtype], TYPES[normed], TYPES[wide], eps, torch.get_num_threads(),
        )
    )  # fmt: skip
    return y, total


def fits_gated(y: Tensor, z: Tensor, weight: Tensor, *, groups: int, eps: float) -> str:
    """Why the kernel cannot take these inputs."""
    if y.dtype != z.dtype:
        return "rows of several dtypes"
    if y.shape[-1] // groups > WIDEST:
        return f"more than {WIDEST} channels a group"
    return unfit(y, z, weight)


@limited(fits_gated)
def gated_rms_norm_c(y: Tensor, z: Tensor, weight: Tensor, *, groups: int, eps: float) -> Tensor:
    """gated_rms_norm, for inputs that hold something."""
    dtype = torch.promote_types(y.dtype, weight.dtype)
    out = torch.empty_like(y, dtype=dtype, memory_format=torch.contiguous_format)
    rows, gate, weight = rows_of(y), rows_of(z), weight.contiguous()
    function("gated_rms_norm")(
        GATED.pack(
            address(rows), address(gate), address(weight), address(out), rows.stride(0),
            gate.stride(0), *rows.shape, groups, TYPES[y.dtype], TYPES[weight.dtype], TYPES[dtype],
            eps, torch.get_num_threads(),
        )
    )  # fmt: skip
    return out
