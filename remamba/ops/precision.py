"""In which precision the ops compute."""

from contextlib import AbstractContextManager, nullcontext

import torch


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of states and sums: float64 for float64 inputs, float32 for everything narrower."""
    return torch.promote_types(x.dtype, torch.float32)


def beyond_float32(*tensors: torch.Tensor | None) -> str:
    """Why kernels, which compute in float32, cannot take these; empty when they can."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return "float64"
    return ""


def without_autocast(x: torch.Tensor) -> AbstractContextManager:
    """A context in which autocast leaves the dtypes alone on x's device."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
