"""The causal convolution in C (causal_conv.c), for inference on a CPU."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, as_float, function, side_by_side, unfit

ARGUMENTS = struct.Struct("7Q9q")
"""`struct ConvArguments` of the source."""


def fits(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, lengths: Tensor | None,
    window: Tensor | None, silu: bool,
) -> str:  # fmt: skip
    """Why the kernel cannot take these inputs."""
    return unfit(x, weight, bias, window)


@limited(fits)
def causal_conv_c(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, lengths: Tensor | None = None,
    window: Tensor | None = None, silu: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """causal_conv, for inputs that hold something."""
    (b, length, e), width = x.shape, weight.shape[1]
    x = side_by_side(x)
    weight, bias = weight.t().float().contiguous(), as_float(bias)
    if window is not None:
        window = window.to(x.dtype).contiguous()
    if lengths is not None:
        lengths = lengths.to("cpu", torch.int64).contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    after = x.new_empty(b, width - 1, e)
    function("causal_conv")(
        ARGUMENTS.pack(
            *(address(t) for t in (x, window, weight, bias, lengths, y, after)),
            *x.stride()[:2], b, length, e, width, silu, TYPES[x.dtype], torch.get_num_threads(),
        )
    )  # fmt: skip
    return y, after
