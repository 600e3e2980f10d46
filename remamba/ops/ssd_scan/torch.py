"""Mamba-2's scan in plain torch: matrix products in chunks, recomputed in backward."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import LOG2_E, time_step

# tokens (rows times length) whose decay matrices are in memory at once
SEGMENT_TOKENS = {"cpu": 256, "cuda": 16384}


def ssd_torch(
    inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd, for l > 0."""
    is_trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    # a compiler cannot trace a backward that computes gradients itself, and plans its own memory
    if is_trained and not torch.compiler.is_compiling():
        return _SSD.apply(dt_limit, chunk_size, *inputs)
    return _forward(dt_limit, chunk_size, inputs)[:2]


def _segments(x: torch.Tensor, chunk_size: int) -> list[slice]:
    """Cuts of l in whole chunks, of about SEGMENT_TOKENS tokens."""
    rows, length = x.shape[:2]
    tokens = SEGMENT_TOKENS.get(x.device.type, SEGMENT_TOKENS["cuda"])
    size = max(tokens // max(rows, 1) // chunk_size, 1) * chunk_size
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _forward(dt_limit, chunk_size, inputs: ScanInputs):
    """y, the final state, and the states before each segment as (b, g, n, r, p)."""
    x, initial_state = inputs.x, inputs.initial_state
    b, _, h, p = x.shape
    g, n = inputs.B.shape[2:]
    dtype = accumulation_dtype(x)
    if initial_state is None:
        state = x.new_zeros(b, g, n, h // g, p, dtype=dtype)
    else:
        state = _grouped(initial_state, g).to(dtype).contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    boundaries = []
    for piece in _segments(x, chunk_size):
        boundaries.append(state)
        y[:, piece], state = _segment(dt_limit, chunk_size, inputs.piece(piece, state))
    return y, _ungrouped(state), boundaries


def _grouped(state: torch.Tensor, g: int) -> torch.Tensor:
    """(b, h, p, n) -> (b, g, n, r, p): a group's r heads side by side, for one product a group."""
    return state.unflatten(1, (g, -1)).permute(0, 1, 4, 2, 3)


def _ungrouped(state: torch.Tensor) -> torch.Tensor:
    """(b, g, n, r, p) -> (b, h, p, n)."""
    return state.permute(0, 1, 3, 4, 2).flatten(1, 2).contiguous()


def _segment(dt_limit, chunk_size, inputs: ScanInputs):
    """y and the state after a piece of l (2405.21060 section 6); states are (b, g, n, r, p).

    Letters: c chunks of k steps, g groups of r heads.
    """
    x, dt, A, B, C, D, _, dt_bias, dt_scale, state = inputs
    assert state is not None, "a segment starts from a state"
    dtype = accumulation_dtype(x)
    length, k = x.shape[1], min(chunk_size, x.shape[1])
    g, _, r, p = state.shape[1:]
    step = time_step(dt, dt_bias, dt_scale, dtype, dt_limit)  # (b, l, h)
    x, B, C = x.to(dtype), B.to(dtype), C.to(dtype)

    u, exponent, B_c, C_c = (
        _in_chunks(t, k) for t in (x * step.unsqueeze(-1), step * (A.to(dtype) * LOG2_E), B, C)
    )
    u = u.unflatten(3, (g, r))  # (b, c, k, g, r, p)
    B_c, C_c = B_c.transpose(2, 3), C_c.transpose(2, 3)  # (b, c, g, k, n)
    # float64: a difference of two large sums must keep the digits of a small decay
    total = exponent.unflatten(3, (g, r)).movedim(2, -1).double().cumsum(-1)  # (b, c, g, r, k)

    # within a chunk step i sees C_i.B_j of each j <= i, decayed
    scores = torch.matmul(C_c, B_c.mT).unsqueeze(3)  # (b, c, g, 1, k, k)
    decay = _Decay.apply(total, dtype)  # (b, c, g, r, k, k)
    in_place = not torch.is_grad_enabled()
    seen = decay.mul_(scores) if in_place else decay * scores
    within = torch.matmul(seen, u.movedim(2, 4))  # (b, c, g, r, k, p)

    # what each chunk adds to the state; the state before each chunk; what a step sees of that
    to_end = (total[..., -1:] - total).to(dtype).exp2()
    to_end, from_start = (
        t.movedim(-1, 2).unsqueeze(-1) for t in (to_end, total.to(dtype).exp2())
    )  # (b, c, k, g, r, 1)
    added = torch.matmul(B_c.mT, (u * to_end).transpose(2, 3).flatten(4)).unflatten(4, (r, p))
    passed = total[..., -1:].to(dtype).exp2().unsqueeze(3)  # (b, c, g, 1, r, 1)
    before, state = _Carry.apply(added, passed, state)  # (b, c, g, n, r, p)
    carried = torch.matmul(C_c, before.flatten(4)).unflatten(4, (r, p)).transpose(2, 3)

    y = carried.mul_(from_start) if in_place else carried * from_start
    y = y.add_(within.movedim(4, 2)).flatten(3, 4).flatten(1, 2)[:, :length]
    if D is not None:
        skip = torch.Tensor.addcmul_ if in_place else torch.addcmul
        y = skip(y, x, D.to(dtype).unsqueeze(-1))
    return y, state


def _in_chunks(t: torch.Tensor, k: int) -> torch.Tensor:
    """t (b, l, ...) as (b, c, k, ...), with zero rows after its end: no input and no decay."""
    pad = -t.shape[1] % k
    if pad:
        t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad))
    return t.unflatten(1, (-1, k))


class _Decay(torch.autograd.Function):
    """2 ** (total_i - total_j) where j <= i, else 0: (..., k, k) in dtype, from total (..., k).

    Masked before the power is taken, so that it never grows.
    """

    @staticmethod
    def forward(ctx, total, dtype):
        k = total.shape[-1]
        future = torch.full((k, k), float("-inf"), dtype=dtype, device=total.device).triu_(1)
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype).add_(future).exp2_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx, ddecay):
        (decay,) = ctx.saved_tensors
        dexponent = ddecay * decay
        return (dexponent.sum(-1) - dexponent.sum(-2)).double().mul_(math.log(2)), None


class _Carry(torch.autograd.Function):
    """The states before each chunk and after the last: state_{c+1} = passed_c * state_c + added_c.

    added (b, c, g, n, r, p); passed (b, c, g, 1, r, 1); state (b, g, n, r, p).
    One launch a chunk and no copies.
    """

    @staticmethod
    def forward(ctx, added, passed, state):
        before = torch.empty_like(added)
        passed = passed.expand(*passed.shape[:-1], added.shape[-1]).contiguous()
        before[:, 0] = state
        for i in range(1, added.shape[1]):
            torch.addcmul(added[:, i - 1], before[:, i - 1], passed[:, i - 1], out=before[:, i])
        ctx.save_for_backward(before, passed)
        return before, torch.addcmul(added[:, -1], before[:, -1], passed[:, -1])

    @staticmethod
    @once_differentiable
    def backward(ctx, dbefore, dstate):
        before, passed = ctx.saved_tensors
        dadded = torch.empty_like(before)
        dadded[:, -1] = dstate
        for i in reversed(range(1, before.shape[1])):
            torch.addcmul(dbefore[:, i], dadded[:, i], passed[:, i], out=dadded[:, i - 1])
        dpassed = torch.einsum("bcgnrp,bcgnrp->bcgr", dadded, before)[:, :, :, None, :, None]
        return dadded, dpassed, torch.addcmul(dbefore[:, 0], dadded[:, 0], passed[:, 0])


class _SSD(torch.autograd.Function):
    """Keeps the inputs and the states between segments; a segment is computed again in backward."""

    @staticmethod
    def forward(ctx, dt_limit, chunk_size, *inputs):
        y, state, boundaries = _forward(dt_limit, chunk_size, ScanInputs(*inputs))
        ctx.dt_limit, ctx.chunk_size = dt_limit, chunk_size
        ctx.save_for_backward(*inputs, *boundaries)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dstate):
        saved = ctx.saved_tensors
        *inputs, initial_state = saved[:10]
        boundaries = saved[10:]
        x, B = inputs[0], inputs[3]
        # what has an axis l, of which each segment has its own part
        is_cut = [name in ("x", "dt", "B", "C", "dt_scale") for name in ScanInputs._fields[:-1]]
        dtype = dstate.dtype  # of sums over segments
        grads = [
            None if t is None else torch.zeros_like(t, dtype=t.dtype if cut else dtype)
            for t, cut in zip(inputs, is_cut, strict=True)
        ]
        dstate = _grouped(dstate, B.shape[2])
        pieces = _segments(x, ctx.chunk_size)
        with without_autocast(dy), torch.enable_grad():
            for piece, state in zip(reversed(pieces), reversed(boundaries), strict=True):
                leaves: list[Any] = [
                    None if t is None else (t[:, piece] if cut else t).detach().requires_grad_()
                    for t, cut in zip((*inputs, state), (*is_cut, False), strict=True)
                ]
                y, end = _segment(ctx.dt_limit, ctx.chunk_size, ScanInputs(*leaves))
                present = [leaf for leaf in leaves if leaf is not None]
                weights = (dy[:, piece].to(dtype), dstate)
                found = iter(torch.autograd.grad((y, end), present, weights))
                for grad, cut in zip(grads, is_cut, strict=True):
                    if grad is not None:
                        (grad[:, piece] if cut else grad).add_(next(found))
                dstate = next(found)
        if initial_state is not None:
            grads.append(_ungrouped(dstate))
        return (
            None,
            None,
            *(
                None if grad is None else grad.to(t.dtype)
                for grad, t in itertools.zip_longest(grads, (*inputs, initial_state))
            ),
        )
