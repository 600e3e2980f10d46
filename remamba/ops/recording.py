"""How autograd and compilers see an op, and how its kernels are launched where neither looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd or a compiler must see an op on these tensors.

    Where neither looks, a kernel is launched past torch.library, whose dispatch costs the host
    more than a short kernel costs the GPU.
    """
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class Op:
    """A function on tensors that torch.library knows by a name.

    Calling it goes through torch.library, for compilers; `function` is the bare one.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.function = function
        self._registered = torch.library.custom_op(name, function, mutates_args=())

    def __call__(self, *arguments: Any) -> Any:
        return self._registered(*arguments)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """`fake` gives what the function gives, without values."""
        self._registered.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], save: Callable[..., None]) -> None:
        """The op's gradient, as torch.library takes it."""
        self._registered.register_autograd(backward, setup_context=save)


def op(name: str) -> Callable[[Callable[..., Any]], Op]:
    """Decorator: a function with annotated arguments becomes the op of this name."""
    return lambda function: Op(name, function)


def with_gradient(
    forward_op: Op, backward_op: Op, save: Callable[..., None], gradients: Callable[..., Any]
) -> Callable[..., Any]:
    """The function to call where `is_recorded`: `forward_op` with its gradient.

    A compiler sees the two ops. In eager mode an autograd.Function calls the bare functions, which
    saves the host 0.1 ms a call and gradient.

    Args:
        save: `setup_context` of an autograd.Function.
        gradients: gradients(ctx, backward, *grads) of the inputs; `backward` is what to call, the
            op or its bare function.
    """
    forward_op.register_autograd(lambda ctx, *grads: gradients(ctx, backward_op, *grads), save)

    class Recorded(torch.autograd.Function):
        setup_context = staticmethod(save)

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return forward_op.function(*arguments)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> Any:
            return gradients(ctx, backward_op.function, *grads)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward_op(*arguments)
        return Recorded.apply(*arguments)

    return call
