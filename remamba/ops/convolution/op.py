"""The short causal convolution before the scan, with a carried window."""

import torch
import torch.nn.functional as F

from remamba.ops.backend import run
from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.recording import takes_recorded_form

HAS_ONEDNN = torch.backends.mkldnn.is_available()


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    lengths: torch.Tensor | None = None,
    window: torch.Tensor | None = None,
    silu: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (b, l, e) and the new window (b, w-1, e), in x's dtype: the depthwise causal convolution.

        y_t = silu(bias + sum_j weight[:, j] * x_{t-w+1+j}),  j = 0 .. w-1

    x (b, l, e); weight (e, w); bias (e,); lengths (b,) integers; window (b, w-1, e): the w-1 inputs
    before x, zeros when None. The new window holds the last w-1 inputs up to each row's own end, so
    a pad never enters it; y at a pad is finite but means nothing. Sums are float32 (float64 for
    float64 x), under autocast too.
    """
    with without_autocast(x):
        options = {"lengths": lengths, "window": window, "silu": silu}
        if not x.numel():
            return causal_conv_torch(x, weight, bias, **options)
        return run("causal_conv", x.device, x, weight, bias, **options)


def causal_conv_torch(
    x, weight, bias=None, *, lengths=None, window=None, silu=True
) -> tuple[torch.Tensor, torch.Tensor]:
    """causal_conv in channels-last all the way: no transposed copies."""
    length, width = x.shape[1], weight.shape[1]
    if window is None:
        window = x.new_zeros(x.shape[0], width - 1, x.shape[2])
    padded = torch.cat([window.to(x.dtype), x], dim=1)
    new_window = _window_at_end(padded, lengths, width)

    dtype = accumulation_dtype(x)
    padded, weight = padded.to(dtype), weight.to(dtype)
    bias = weight.new_zeros(()) if bias is None else bias.to(dtype)
    is_trained = takes_recorded_form(padded, weight, bias)
    if length == 1:
        y = torch.linalg.vecdot(padded, weight.t(), dim=1).add_(bias).unsqueeze(1)
    elif _runs_in_onednn(padded) and not is_trained:
        # as an image of height 1, whose channels-last form oneDNN knows: a third of the time below
        image, kernel = padded.mT.unsqueeze(2), weight[:, None, None]
        y = F.conv2d(image, kernel, bias.expand(len(weight)), groups=len(weight)).squeeze(2).mT
    else:
        y = torch.addcmul(bias, padded[:, :length], weight[:, 0])
        for j in range(1, width):
            y = y.addcmul_(padded[:, j : j + length], weight[:, j])
    if silu:
        y = F.silu(y, inplace=not is_trained)
    return y.to(x.dtype), new_window


def _runs_in_onednn(x: torch.Tensor) -> bool:
    return HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _window_at_end(padded: torch.Tensor, lengths: torch.Tensor | None, width: int) -> torch.Tensor:
    """The w-1 inputs before each row's end; padded (b, w-1 + l, e) is x behind the old window."""
    if lengths is None:
        return padded[:, padded.shape[1] - width + 1 :].clone()
    lengths = lengths.to(padded.device).clamp(max=padded.shape[1] - width + 1)
    index = lengths.unsqueeze(1) + torch.arange(width - 1, device=padded.device)
    return padded.gather(1, index.unsqueeze(2).expand(-1, -1, padded.shape[2]))
