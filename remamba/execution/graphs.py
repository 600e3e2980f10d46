"""CUDA graphs: a function of tensors is captured once, and replayed without its launch overhead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 2
"""Runs before the capture, in which kernels are compiled and libraries allocate workspaces."""


class Graph:
    """`function(*inputs)` captured on static tensors of the inputs' shapes and dtypes.

    A call copies its arguments into the static inputs, replays, and returns the function's static
    outputs: the next call overwrites them, so a caller that keeps them clones them. What the
    function writes in place, warm-up included, is the caller's to restore.

    Args:
        function: launches GPU work only; it must not wait for the GPU (`.item()`, `.tolist()`).
        inputs: examples; their values are those of the warm-up.
        pool: another graph's `pool`, when the two are never in use at the same time.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...] = (), pool: Any = None
    ):
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        stream = _capture_stream(torch.cuda.current_device())
        # other threads (a server's, a data loader's) may go on with work of their own meanwhile
        with torch.cuda.graph(
            self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        ):
            self.outputs = function(*self.inputs)

    @property
    def pool(self) -> Any:
        """The memory pool that this graph allocates from."""
        return self._graph.pool()

    def __call__(self, *inputs: Tensor) -> Any:
        for static, new in zip(self.inputs, inputs, strict=True):
            static.copy_(new, non_blocking=True)
        self._graph.replay()
        return self.outputs


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """A GPU's capture stream; torch's own makes the GPU that captured first the current one."""
    return torch.cuda.Stream(device)
