"""The states of the requests being answered at once: one row of a cache for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from remamba.cache import StateCache

T = TypeVar("T")


class Slots(Generic[T]):
    """Up to `capacity` rows of states, each with its owner.

    Compact slots hold as many rows as there are owners, so that a step costs what it must. Static
    ones always hold `capacity` rows, free ones among them with states that mean nothing: the fixed
    shape that a captured graph of the decode step asks for.
    """

    def __init__(self, capacity: int, *, static: bool = False):
        self.capacity = capacity
        self.static = static
        self.cache: StateCache | None = None
        self.owners: list[T | None] = [None] * capacity if static else []

    @property
    def rows(self) -> list[int]:
        """The rows that have an owner."""
        return [row for row, owner in enumerate(self.owners) if owner is not None]

    @property
    def free(self) -> int:
        return self.capacity - len(self.rows)

    def put(self, cache: StateCache, owners: Sequence[T]) -> None:
        """Take in the states of new owners, row i of `cache` for owner i.

        The states are copied, except that compact slots keep those of an empty house as they are.
        """
        assert cache.batch_size == len(owners) <= self.free, (cache.batch_size, self.free)
        if self.static:
            self._overwrite(cache, owners)
        elif self.cache is None:
            self.cache = cache
            self.owners = list(owners)
        else:
            self.cache = _combine(self.cache, cache, lambda old, new: torch.cat([old, new]))
            self.owners += owners

    def _overwrite(self, cache: StateCache, owners: Sequence[T]) -> None:
        if self.cache is None:
            self.cache = _combine(
                cache, cache, lambda state, _: state.new_zeros(self.capacity, *state.shape[1:])
            )
        rows = [row for row, owner in enumerate(self.owners) if owner is None][: len(owners)]
        for row, owner in zip(rows, owners, strict=True):
            self.owners[row] = owner
        _combine(self.cache, cache, lambda old, new: _copy_rows(old, new, rows))

    def drop(self, owners: Sequence[T]) -> None:
        """Free the rows of these owners; those who hold none are passed over."""
        leaving = {id(owner) for owner in owners}
        kept = [row for row in self.rows if id(self.owners[row]) not in leaving]
        if self.static:
            self.owners = [owner if row in kept else None for row, owner in enumerate(self.owners)]
        elif len(kept) < len(self.owners):
            self.owners = [self.owners[row] for row in kept]
            if not kept:
                self.cache = None
            elif self.cache is not None:
                self.cache = self.cache.select(torch.tensor(kept))


def _copy_rows(old: Tensor, new: Tensor, rows: list[int]) -> Tensor:
    return old.index_copy_(0, torch.tensor(rows, device=old.device), new.to(old.dtype))


def _combine(
    first: StateCache, second: StateCache, function: Callable[[Tensor, Tensor], Tensor]
) -> StateCache:
    """A cache whose every state is function(state of first, state of second)."""
    combined = StateCache(len(first.conv_states))
    for i in range(len(first.conv_states)):
        states = (first.conv_states[i], first.ssm_states[i])
        others = (second.conv_states[i], second.ssm_states[i])
        assert all(state is not None for state in (*states, *others)), "put an empty cache"
        combined.update(i, *map(function, states, others))  # type: ignore[arg-type]
    return combined
