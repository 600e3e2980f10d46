"""The GPU that kernels are launched on."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

_HERE = nullcontext()


def on_device(x: torch.Tensor) -> AbstractContextManager:
    """A context in which x's GPU is the current one: Triton launches, and graphs capture, there."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


def processors(device: torch.device, otherwise: int = 1) -> int:
    """The GPU's multiprocessors; `otherwise` where there is no GPU."""
    return _processors(device) or otherwise


# see `_order` in ops/backend.py
processors._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count
