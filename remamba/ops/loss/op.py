"""The cross-entropy of rows of logits, which are often the largest tensor of a training step."""

import torch
import torch.nn.functional as F

from remamba.ops.backend import run
from remamba.ops.precision import accumulation_dtype


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log softmax(logits)[target] of each row, and whether the target is what the row says.

    Args:
        logits: (n, v) with v at least 1.
        target: (n,) int64, each in [0, v).

    Returns:
        (n,) float32 (float64 for float64); (n,) bool, whether the target is the first of the
        largest logits.
    """
    if not logits.numel():
        return cross_entropy_torch(logits, target)
    return run("cross_entropy", logits.device, logits, target)


def cross_entropy_torch(logits, target) -> tuple[torch.Tensor, torch.Tensor]:
    """cross_entropy by torch's own."""
    right = logits.detach().argmax(dim=1) == target
    wide = logits.to(accumulation_dtype(logits))
    return F.cross_entropy(wide, target, reduction="none"), right
