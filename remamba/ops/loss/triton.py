"""cross_entropy in Triton: the logits are read once, and once more for their gradient."""

import torch
import triton
import triton.language as tl

from remamba.ops.backend import limited
from remamba.ops.device import on_device
from remamba.ops.precision import beyond_float32
from remamba.ops.recording import with_gradient
from remamba.ops.time_step.triton_softplus import LOG2_E
from remamba.ops.triton_launch import launched

BLOCK = 4096
"""Logits of a row at once."""
WARPS = 8
LEAST = 32 * WARPS
"""One logit a lane."""
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@launched
@triton.jit(do_not_specialize=["classes"])
def _forward_kernel(logits, target, loss, right, mass, classes, row_stride, BLOCK: tl.constexpr):
    """A program is a row; mass (rows, 2): the largest logit m, and log2 of the sum of e^(v - m).

    They stay apart, as their sum would lose the digits of the second beside large logits.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    label = tl.load(target + row)
    column = tl.arange(0, BLOCK)
    largest = float("-inf")
    first = classes  # where the largest stands first
    total = 0.0
    for start in range(0, classes, BLOCK):
        mask = start + column < classes
        v = tl.load(logits + start + column, mask=mask, other=float("-inf")).to(tl.float32)
        top = tl.max(v, axis=0)
        place = tl.min(tl.where(v == top, start + column, classes), axis=0)
        first = tl.where(top > largest, place, first)
        above = tl.maximum(top, largest)
        # what is -inf as yet has no mass; subtracted from itself it would be NaN
        shift = tl.where(above == float("-inf"), 0.0, above)
        parts = tl.sum(tl.exp2((v - shift) * LOG2_E), axis=0)
        total = total * tl.exp2((largest - shift) * LOG2_E) + parts
        largest = above
    total = tl.log2(total)
    # a label that is no class has no loss: NaN, and no reading past the row
    is_class = (label >= 0) & (label < classes)
    own = tl.load(logits + label, mask=is_class, other=float("nan")).to(tl.float32)
    tl.store(loss + row, (largest - own) + total * LN_2)
    tl.store(right + row, first == label)
    tl.store(mass + 2 * row, largest)
    tl.store(mass + 2 * row + 1, total)


@launched
@triton.jit(do_not_specialize=["classes"])
def _backward_kernel(
    logits, target, mass, dloss, dlogits, classes, row_stride, dloss_stride, BLOCK: tl.constexpr
):
    """A program is a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < classes
    d = tl.load(dloss + row * dloss_stride)
    v = tl.load(logits + row * row_stride + column, mask=mask, other=0.0).to(tl.float32)
    share = (v - tl.load(mass + 2 * row)) * LOG2_E - tl.load(mass + 2 * row + 1)
    share = tl.exp2(share)
    share = tl.where(column == tl.load(target + row), share - 1.0, share)
    tl.store(dlogits + row * classes + column, share * d, mask=mask)


def _fits(logits: torch.Tensor, *others: object) -> str:
    return beyond_float32(logits)


@limited(_fits)
def cross_entropy_triton(logits, target) -> tuple[torch.Tensor, torch.Tensor]:
    """cross_entropy in one launch, and one more for the gradient."""
    loss, right, _ = _recorded(logits, target)
    return loss, right


def _block(classes: int) -> int:
    return min(BLOCK, max(LEAST, triton.next_power_of_2(classes)))


def _forward(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    n, classes = logits.shape
    loss = torch.empty(n, dtype=torch.float32, device=logits.device)
    mass = torch.empty((n, 2), dtype=torch.float32, device=logits.device)
    right = torch.empty(n, dtype=torch.bool, device=logits.device)
    with on_device(logits):
        _forward_kernel[(n,)](
            logits, target.contiguous(), loss, right, mass, classes, logits.stride(0),
            BLOCK=_block(classes), num_warps=WARPS,
        )  # fmt: skip
    return loss, right, mass


def _fake(logits, target):
    n = logits.shape[0]
    loss = logits.new_empty(n, dtype=torch.float32)
    return loss, logits.new_empty(n, dtype=torch.bool), logits.new_empty(n, 2, dtype=torch.float32)


def _backward(
    logits: torch.Tensor, target: torch.Tensor, mass: torch.Tensor, dloss: torch.Tensor
) -> torch.Tensor:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    n, classes = logits.shape
    dlogits = torch.empty((n, classes), dtype=logits.dtype, device=logits.device)
    block = _block(classes)
    with on_device(logits):
        _backward_kernel[(n, triton.cdiv(classes, block))](
            logits, target.contiguous(), mass, dloss, dlogits, classes, logits.stride(0),
            dloss.stride(0), BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return dlogits


def _fake_backward(logits, target, mass, dloss):
    return logits.new_empty(logits.shape)


def _save(ctx, inputs, output):
    _, right, mass = output
    ctx.mark_non_differentiable(right, mass)
    ctx.save_for_backward(*inputs, mass)


def _gradients(ctx, backward, dloss, *others):
    return backward(*ctx.saved_tensors, dloss), None


_recorded = with_gradient(
    "remamba::cross_entropy", _forward, _backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip
