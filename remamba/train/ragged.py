"""Ragged: many short arrays in one flat array, so that worker processes share them for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ragged(NamedTuple):
    """Arrays of different lengths, end to end."""

    flat: NDArray
    """All values."""
    offsets: NDArray
    """(n + 1,) int64: array i is flat[offsets[i] : offsets[i + 1]]."""

    def row(self, i: int) -> NDArray:
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray:
        return np.diff(self.offsets)


class RaggedBuilder:
    """Collects arrays into a Ragged of the given type."""

    def __init__(self, dtype: type | np.dtype):
        self.dtype = np.dtype(dtype)
        self._blocks: list[NDArray] = []
        self._lengths: list[int] = []

    def extend(self, arrays: Iterable[NDArray]) -> None:
        arrays = list(arrays)
        if arrays:
            self._lengths.extend(map(len, arrays))
            self._blocks.append(np.concatenate(arrays).astype(self.dtype, copy=False))

    def __len__(self) -> int:
        return len(self._lengths)

    def build(self) -> Ragged:
        offsets = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        flat = np.concatenate(self._blocks) if self._blocks else np.zeros(0, self.dtype)
        return Ragged(flat, offsets)
