"""Large results that a backward pass makes again, cheaply, instead of keeping them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from remamba.ops.recording import repeating


class Recomputed:
    """A context in which what autograd would keep of some tensors is how to make them again.

    Within it, `add` names a tensor and a function that returns the same numbers. Where an op
    keeps that tensor, or a view of it, for its gradient, only the function is kept. The first op
    that needs the tensor in the backward pass calls it, and the last lets the tensor go.
    """

    def __init__(self) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        # with the tensors themselves, so that no other takes their place in memory
        self._results: dict[int, tuple[_Result, Tensor]] = {}

    def __enter__(self) -> Recomputed:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._hooks.__exit__(*raised)
        self._results.clear()

    def add(self, result: Tensor, make: Callable[[], Tensor]) -> None:
        """`make` returns `result` once more: the same numbers in the same layout."""
        if result.requires_grad and result.numel():
            place = result.untyped_storage().data_ptr()
            self._results[place] = _Result(make, result), result

    def _pack(self, kept: Tensor) -> Tensor | _View:
        if type(kept) not in (Tensor, nn.Parameter):  # a quantised weight, or one in shards
            return kept
        found = self._results.get(kept.untyped_storage().data_ptr())
        if found is None or kept.dtype != found[1].dtype:
            return kept
        result, whole = found
        result.uses += 1
        offset = int(kept.storage_offset()) - int(whole.storage_offset())
        return _View(result, kept.shape, kept.stride(), offset)


class _Result:
    """A tensor that can be made again, and how many ops wait for it."""

    def __init__(self, make: Callable[[], Tensor], like: Tensor):
        device = like.device.type
        self.uses = 0
        self._make = make
        # without its cache: what is cast here has no gradient, and others would be given it
        self._autocast = functools.partial(
            torch.autocast, device, torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device), cache_enabled=False,
        )  # fmt: skip
        self._value: Tensor | None = None
        self._waiting = 0

    def take(self) -> Tensor:
        value = self._value
        if value is None:
            with repeating(), self._autocast():
                value = self._make()
            self._waiting = self.uses
        self._waiting -= 1
        self._value = value if self._waiting else None
        return value


class _View:
    """What is kept in place of a tensor, or of a part of it."""

    def __init__(self, result: _Result, shape: torch.Size, stride: tuple[int, ...], offset: int):
        self._result = result
        self._layout = shape, stride
        self._offset = offset

    def __call__(self) -> Tensor:
        value = self._result.take()
        return value.as_strided(*self._layout, value.storage_offset() + self._offset)


def _unpack(kept: Tensor | _View) -> Tensor:
    return kept() if isinstance(kept, _View) else kept


def is_worth_recomputing() -> bool:
    """Whether autograd keeps tensors here, and nobody else decides how.

    Checkpointing makes all of a block again, or moves it to other memory, by hooks of the same
    kind, which must not be hidden from what it is to drop; a compiler decides by itself.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    )


def is_repeatable(module: nn.Module) -> bool:
    """Whether a second call of a module gives what the first gave: nothing is dropped by chance."""
    return not any(
        isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in module.modules()
    )
