"""The short causal convolution before the scan, with a carried window."""

import torch
import torch.nn.functional as F

from remamba.ops.backend import implementation
from remamba.ops.precision import accumulation_dtype, without_autocast


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    lengths: torch.Tensor | None = None,
    window: torch.Tensor | None = None,
    silu: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (b, l, e) = silu(depthwise causal convolution of x), and the new window (b, w-1, e), both in x's dtype.

        y_t = silu(bias + sum_j weight[:, j] * x_{t-w+1+j}),  j = 0 .. w-1

    x (b, l, e); weight (e, w); bias (e,); lengths (b,) integers; window (b, w-1, e): the w-1 inputs before x, zeros
    when None. The new window holds the last w-1 inputs up to each row's own end, so a pad never enters it; y at a pad
    is finite but means nothing. Sums are float32 (float64 for float64 x), under autocast too.
    """
    with without_autocast(x):
        run = implementation("causal_conv", x.device)
        return run(x, weight, bias, lengths=lengths, window=window, silu=silu)


def causal_conv_torch(
    x, weight, bias=None, *, lengths=None, window=None, silu=True
) -> tuple[torch.Tensor, torch.Tensor]:
    """causal_conv as w shifted multiply-adds: in channels-last no shift needs a transposed copy."""
    length, width = x.shape[1], weight.shape[1]
    if window is None:
        window = x.new_zeros(x.shape[0], width - 1, x.shape[2])
    padded = torch.cat([window.to(x.dtype), x], dim=1)
    new_window = _window_at(padded, length, lengths, width)

    dtype = accumulation_dtype(x)
    padded, weight = padded.to(dtype), weight.to(dtype)
    y = padded[:, :length] * weight[:, 0]
    for j in range(1, width):
        y = torch.addcmul(y, padded[:, j : j + length], weight[:, j])
    if bias is not None:
        y = y + bias.to(dtype)
    if silu:
        y = F.silu(y)
    return y.to(x.dtype), new_window


def _window_at(padded, length, lengths, width):
    """The w-1 inputs before each row's end; padded is x (b, l, e) with the old window in front."""
    if lengths is None:
        return padded[:, length:].clone()
    index = lengths.to(padded.device).clamp(max=length).unsqueeze(1) + torch.arange(width - 1, device=padded.device)
    return padded.gather(1, index.unsqueeze(-1).expand(-1, -1, padded.shape[2]))
