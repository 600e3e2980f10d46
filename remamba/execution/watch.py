"""Whether a model is still the one that was captured: a graph reads weights at fixed addresses."""

from __future__ import annotations

import weakref
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from remamba.model.backbone import Backbone, Block
from remamba.model.layers import CausalConv1d, GatedRMSNorm, Projection, RMSNorm, is_plain
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.time_step import DtAdaption

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
KNOWN = frozenset(
    (
        Backbone, Block, MambaMixer, Mamba2Mixer, CausalConv1d, RMSNorm, GatedRMSNorm, DtAdaption,
        Projection, nn.Linear, nn.Embedding, nn.ModuleList, nn.Parameter, Tensor,
    )
)  # fmt: skip
"""Modules and weights of which it is known what they do; others (adapters, quantised ones) may do
something else next time, and nothing here would tell."""


class Watch:
    """The parts and weights of some modules as they were when the watch began.

    It is asked for every request, or before every replay, so it compares flat lists and walks no
    tree. It keeps replaced weights alive until it is let go itself.
    """

    def __init__(self, *modules: nn.Module):
        self._modules = [weakref.ref(module) for module in modules]
        parts = [part for module in modules for part in module.modules()]
        names = ("_modules", "_parameters", "_buffers")
        tables = (part.__dict__[name] for part in parts for name in names)
        self._tables = [table for table in tables if table]
        self._held = self._look_up()
        self._weights = [x for x in self._held if isinstance(x, Tensor)]
        self._counted = [x for x in self._weights if not x.is_inference()]
        self._places, self._versions = _places(self._weights), self._count()
        named = [(t, name) for t in self._tables for name, x in t.items() if isinstance(x, Tensor)]
        ends = (named[0], named[-1]) if named else ()
        self._ends = [(t, name, t[name], t[name].data_ptr(), t[name].dtype) for t, name in ends]
        self._attributes = [part.__dict__ for part in parts]
        self._hooks = [d[name] for d in self._attributes for name in HOOKS]
        self.devices = {x.device for x in self._weights}
        self.is_known = {type(x) for x in chain(parts, self._weights)} <= KNOWN
        """Whether all of it is KNOWN."""
        self.is_plain = all(map(is_plain, self._weights))
        """Whether no weight is quantised."""

    def _look_up(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._tables)))

    def _count(self) -> list[int]:
        return list(map(attrgetter("_version"), self._counted))

    def is_of(self, *modules: nn.Module) -> bool:
        """True if these are the modules that are watched."""
        return len(modules) == len(self._modules) and all(
            ref() is module for ref, module in zip(self._modules, modules, strict=True)
        )

    def is_in_place(self) -> bool:
        """True while no part and no weight was replaced or moved; weights may have been written."""
        held = self._look_up()
        return (
            len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and _places(self._weights) == self._places
        )

    def is_in_place_at_a_glance(self) -> bool:
        """`is_in_place`, of the first and the last weight only: for every step of a request."""
        return all(
            table.get(name) is weight and weight.data_ptr() == place and weight.dtype == dtype
            for table, name, weight, place, dtype in self._ends
        )

    def is_current(self) -> bool:
        """True while no part and no weight was replaced, moved or written."""
        return self.is_in_place() and self._count() == self._versions

    def is_observed(self) -> bool:
        """True if hooks wait on a part, or its forward was replaced; a replay would pass it by."""
        return any(self._hooks) or any("forward" in d for d in self._attributes)


def _places(weights: list[Tensor]) -> list[Any]:
    """Where weights lie, and as what."""
    return [*map(Tensor.data_ptr, weights), *map(attrgetter("dtype"), weights)]
