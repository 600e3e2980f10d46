"""How autograd and compilers see an op, and how its kernels are launched where neither looks."""

from __future__ import annotations

import functools
import inspect
import threading
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

GRADIENT = "a gradient is asked for, or a compiler looks"
"""Why a kernel without a gradient does not run where `is_recorded`."""


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd or a compiler must see an op on these tensors.

    Where neither looks, a kernel is launched past torch.library, whose dispatch costs the host
    more than a short kernel costs the GPU.
    """
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_local = threading.local()


@contextmanager
def repeating() -> Iterator[None]:
    """Inside the block, ops record nothing, and give the very numbers that they gave when they did.

    A backward pass makes results again in it. Forms of an op for inference alone, which may round
    otherwise, are left aside (`takes_recorded_form`).
    """
    before = getattr(_local, "is_repeating", False)
    _local.is_repeating = True
    try:
        with torch.no_grad():
            yield
    finally:
        _local.is_repeating = before


def takes_recorded_form(*tensors: torch.Tensor | None) -> bool:
    """Whether an op on these takes the form that autograd can follow: `is_recorded`, or in
    `repeating`."""
    return getattr(_local, "is_repeating", False) or is_recorded(*tensors)


def with_gradient(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    save: Callable[..., None],
    gradients: Callable[..., Any],
) -> Callable[..., Any]:
    """The function to call where `is_recorded`: `forward` with its gradient.

    torch.library knows both as ops, `name` and `name` + "_backward", which a compiler sees. In
    eager mode an autograd.Function calls the bare functions, which saves the host 0.1 ms a call
    and gradient. The gradient has no gradient of its own: asking for one is refused.

    Args:
        name: "namespace::op".
        forward, backward: functions with annotated arguments, as torch.library takes them; they
            change none of them and return none of them. The first may be a NamedTuple of
            tensors: the ops take its fields one by one, as does what is returned here.
        fake, fake_backward: what the two return, without values.
        save: `setup_context` of an autograd.Function.
        gradients: gradients(ctx, backward, *grads) of forward's inputs; `backward` is what to
            call, the op or the bare function.
    """
    fake, fake_backward = _taking_fields(fake, forward), _taking_fields(fake_backward, backward)
    forward, backward = _taking_fields(forward, forward), _taking_fields(backward, backward)
    forward_op = torch.library.custom_op(name, forward, mutates_args=())
    backward_op = torch.library.custom_op(f"{name}_backward", backward, mutates_args=())
    forward_op.register_fake(fake)
    backward_op.register_fake(fake_backward)
    forward_op.register_autograd(
        lambda ctx, *grads: gradients(ctx, backward_op, *grads), setup_context=save
    )

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            # with a setup_context of its own, torch would look at forward's signature every time
            result = forward(*arguments)
            save(ctx, arguments, result)
            return result

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> Any:
            return gradients(ctx, backward, *grads)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward_op(*arguments)
        return Recorded.apply(*arguments)

    return call


def _taking_fields(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the fields of its first argument, if `like`'s is a NamedTuple, for it."""
    hints = typing.get_type_hints(like)
    first, *others = inspect.signature(like).parameters
    fields = typing.get_type_hints(hints[first]) if hasattr(hints[first], "_fields") else {}
    if not fields:
        return function
    flat = {**fields, **{name: hints[name] for name in others}}

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return function(hints[first](*arguments[: len(fields)]), *arguments[len(fields) :])

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
            for name, hint in flat.items()
        ],
        return_annotation=hints["return"],
    )
    return run
