"""Whether a call of an op has to be recorded, or its kernel may be launched at once."""

import torch


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd or a compiler must see an op on these tensors.

    Where neither looks, a kernel is launched past torch.library, whose dispatch costs the host
    more than a short kernel costs the GPU.
    """
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
