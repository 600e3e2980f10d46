"""Triton kernels launched without most of what Triton's own wrapper does at every call."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton


class Launched:
    """A kernel of `triton.jit`, called as such: `kernel[grid](*arguments, NAME=constant, ...)`.

    Triton finds out at every call for which dtypes, alignments and constants a kernel must have
    been compiled, in about 0.1 ms of the host's time, which is more than most kernels need. Here a
    key of the same facts is looked up, and what Triton had compiled for it is launched.
    """

    def __init__(self, kernel: Any):
        self._kernel = kernel
        self._names: list[str] = kernel.arg_names
        self._is_constant = [p.is_constexpr for p in kernel.params]
        # the key of a call -> what was compiled for it, and its constants in their order
        self._compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        device = torch.cuda.current_device()
        key = (device, *map(_facts, arguments, self._is_constant), *options.items())
        found = self._compiled.get(key)
        if found is None:
            compiled = self._kernel[grid](*arguments, **options)
            constants = tuple(options[name] for name in self._names[len(arguments) :])
            self._compiled[key] = compiled, constants
            return
        compiled, constants = found
        compiled.run(
            grid[0], grid[1] if len(grid) > 1 else 1, grid[2] if len(grid) > 2 else 1,
            torch._C._cuda_getCurrentRawStream(device), compiled.function,
            compiled.packed_metadata, None, None, None, *arguments, *constants,
        )  # fmt: skip


def _facts(argument: Any, is_constant: bool) -> Any:
    """What of an argument decides how its kernel is compiled, and perhaps a little more."""
    kind = type(argument)
    if is_constant:
        return kind, argument
    if kind is int:
        # 1 becomes a constant, multiples of 16 are told, and there are 32 or 64 bits
        return argument == 1, argument & 15 == 0, argument.bit_length() < 32, argument < 2**63
    if kind is torch.Tensor or isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() & 15 == 0
    return argument if argument is None or kind is bool else kind


def launched(kernel: Any) -> Any:
    """Decorator above `triton.jit` of a kernel that the host launches."""
    return kernel if triton.knobs.runtime.interpret else Launched(kernel)
