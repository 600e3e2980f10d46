"""Whether a model is still the one that was captured: a graph reads weights at fixed addresses."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Watch:
    """A module's parts and weights as they were when the watch began.

    It is asked before every replay, so it compares flat lists and walks no tree. It keeps replaced
    weights alive until it is let go itself.
    """

    def __init__(self, module: nn.Module):
        parts = list(module.modules())
        names = ("_modules", "_parameters", "_buffers")
        tables = (part.__dict__[name] for part in parts for name in names)
        self._tables = [table for table in tables if table]
        self._held = self._look_up()
        self._weights = [x for x in self._held if isinstance(x, Tensor)]
        self._counted = [x for x in self._weights if not x.is_inference()]
        self._places, self._versions = self._find(), self._count()
        self._attributes = [part.__dict__ for part in parts]
        self._hooks = [d[name] for d in self._attributes for name in HOOKS]
        self.devices = {x.device for x in self._weights}
        self.types = {type(x) for x in parts} | {type(x.data) for x in self._weights}

    def _look_up(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._tables)))

    def _find(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._weights))

    def _count(self) -> list[int]:
        return list(map(attrgetter("_version"), self._counted))

    def is_current(self) -> bool:
        """True while no part and no weight was replaced, moved or written."""
        held = self._look_up()
        return (
            len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and self._find() == self._places
            and self._count() == self._versions
        )

    def is_observed(self) -> bool:
        """True if hooks wait on a part, or its forward was replaced; a replay would pass it by."""
        return any(self._hooks) or any("forward" in d for d in self._attributes)
