"""The selective scan in plain torch: chunk by chunk, in place, recomputed in backward."""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import LOG2_E, time_step

# steps whose decays and states are in memory at once; training keeps the states between chunks
CHUNK = 32
# on a CPU fewer, where a buffer of so many elements would leave the cache
CACHED_ELEMENTS = 2**20


def selective_scan_torch(inputs: ScanInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """selective_scan, for l > 0."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _SelectiveScan.apply(*inputs)
    return _forward(False, inputs)[:2]


class _Chunks:
    """Buffers (k, b, n, e) for one chunk: a step's slice is contiguous, updated in place."""

    def __init__(self, x, A):
        self.dtype = accumulation_dtype(x)
        self.A = A.to(self.dtype).t().contiguous()  # (n, e)
        self.A_log2 = self.A * LOG2_E
        shape = (len(x), *self.A.shape)  # (b, n, e)
        self.size = min(CHUNK, x.shape[1])
        if x.device.type == "cpu":
            self.size = min(self.size, max(CACHED_ELEMENTS // math.prod(shape), 8))
        self.decay = x.new_empty(self.size, *shape, dtype=self.dtype)
        # states[0] is the state before the chunk
        self.states = x.new_empty(self.size + 1, *shape, dtype=self.dtype)
        self.decay_at = self.decay.unbind()
        self.states_at = self.states.unbind()

    def take(self, tensor: torch.Tensor, start: int) -> torch.Tensor:
        """The chunk of a (b, l, ...) tensor as (k, b, ...)."""
        return tensor[:, start : start + self.size].transpose(0, 1).to(self.dtype)

    def run(
        self, step: torch.Tensor, u: torch.Tensor, B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """decay and states (k, b, n, e) of the recurrence that goes on from self.states[0].

        step, u = step * x (k, b, e); B (k, b, n).
        """
        steps = step.shape[0]
        decay, states = self.decay[:steps], self.states[1 : steps + 1]
        torch.mul(step.unsqueeze(2), self.A_log2, out=decay).exp2_()
        torch.mul(u.unsqueeze(2), B.unsqueeze(3), out=states)
        for t in range(steps):
            self.states_at[t + 1].addcmul_(self.decay_at[t], self.states_at[t])
        return decay, states


def _forward(keep_boundaries: bool, inputs: ScanInputs):
    """y, the final state, and (when asked) the states before each chunk, each (b, n, e)."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state = inputs
    chunks = _Chunks(x, A)
    dtype, length = chunks.dtype, x.shape[1]
    y = _new_like(x)
    state = chunks.states[0].zero_()
    if initial_state is not None:
        state.copy_(initial_state.mT)
    boundaries = []
    for start in range(0, length, chunks.size):
        if keep_boundaries:
            boundaries.append(state.clone())
        x_c = chunks.take(x, start)
        scale_c = None if dt_scale is None else chunks.take(dt_scale, start)
        step = time_step(chunks.take(dt, start), dt_bias, scale_c, dtype)
        _, states = chunks.run(step, step * x_c, chunks.take(B, start))
        y_c = torch.matmul(chunks.take(C, start).unsqueeze(2), states).squeeze(2)
        if D is not None:
            y_c.addcmul_(x_c, D.to(dtype))
        if z is not None:
            y_c.mul_(F.silu(chunks.take(z, start)))
        y[:, start : start + chunks.size] = y_c.transpose(0, 1)
        state.copy_(states[-1])
    return y, state.mT.contiguous(), boundaries


class _SelectiveScan(torch.autograd.Function):
    """Keeps the inputs and the states between chunks; a chunk is computed again in backward."""

    @staticmethod
    def forward(ctx, *inputs):
        y, state, boundaries = _forward(True, ScanInputs(*inputs))
        ctx.save_for_backward(*inputs, *boundaries)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dstate):
        saved = ctx.saved_tensors  # once only: checkpointing allows no second unpacking
        inputs, boundaries = ScanInputs(*saved[:10]), saved[10:]
        with without_autocast(dy):
            grads = _backward(dy, dstate, boundaries, inputs)
        return tuple(
            grad.to(t.dtype) if t is not None and needed else None
            for grad, t, needed in zip(grads, inputs, ctx.needs_input_grad, strict=True)
        )


def _new_like(t):
    """Uninitialised and contiguous, for an input that there is."""
    return None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)


def _backward(dy, dstate, boundaries, inputs: ScanInputs):
    """The gradients of the inputs, in their order."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, _ = inputs
    chunks = _Chunks(x, A)
    dtype, size = chunks.dtype, chunks.size
    adjoint = torch.empty_like(chunks.decay)  # d loss / d h_t
    adjoint_at = adjoint.unbind()
    # what reaches the chunk's last state from after the chunk
    carry = dstate.to(dtype).mT.contiguous()
    dx, ddt, dB, dC, dz, ddt_scale = (_new_like(t) for t in (x, dt, B, C, z, dt_scale))
    dA = torch.zeros_like(chunks.A)
    dD, dbias = dA.new_zeros(x.shape[2]), dA.new_zeros(x.shape[2])

    for start in reversed(range(0, x.shape[1], size)):
        piece = slice(start, start + size)
        x_c, B_c, C_c = (chunks.take(t, start) for t in (x, B, C))
        dy_c = chunks.take(dy, start)
        pre = chunks.take(dt, start)
        if dt_bias is not None:
            pre = pre + dt_bias.to(dtype)
        unscaled = F.softplus(pre)
        scale_c = None if dt_scale is None else chunks.take(dt_scale, start).unsqueeze(-1)
        step = unscaled if scale_c is None else unscaled * scale_c
        u = step * x_c
        chunks.states[0].copy_(boundaries[start // size])
        decay, states = chunks.run(step, u, B_c)
        steps = len(step)

        if z is not None:
            y_c = torch.matmul(C_c.unsqueeze(2), states).squeeze(2)
            if D is not None:
                y_c.addcmul_(x_c, D.to(dtype))
            z_c = chunks.take(z, start)
            gate = torch.sigmoid(z_c)
            dz[:, piece] = (dy_c * y_c * gate * (1 + z_c * (1 - gate))).transpose(0, 1)
            dy_c = dy_c * (z_c * gate)

        grad = torch.mul(dy_c.unsqueeze(2), C_c.unsqueeze(3), out=adjoint[:steps])
        grad[-1].add_(carry)
        for t in reversed(range(1, steps)):
            adjoint_at[t - 1].addcmul_(chunks.decay_at[t], adjoint_at[t])
        torch.mul(decay[0], grad[0], out=carry)

        dC[:, piece] = torch.matmul(dy_c.unsqueeze(2), states.mT).squeeze(2).transpose(0, 1)
        dB[:, piece] = torch.matmul(u.unsqueeze(2), grad.mT).squeeze(2).transpose(0, 1)
        du = torch.matmul(B_c.unsqueeze(2), grad).squeeze(2)
        dexponent = grad.mul_(decay).mul_(chunks.states[:steps])  # of step * A
        dstep = torch.mul(dexponent, chunks.A, out=decay).sum(2).addcmul_(du, x_c)
        dA += dexponent.mul_(step.unsqueeze(2)).sum((0, 1))

        dx_c = du * step
        if D is not None:
            dx_c.addcmul_(dy_c, D.to(dtype))
            dD += (dy_c * x_c).sum((0, 1))
        dx[:, piece] = dx_c.transpose(0, 1)
        if scale_c is not None:
            ddt_scale[:, piece] = (dstep * unscaled).sum(2).t()
            dstep = dstep * scale_c
        ddt_c = dstep * torch.sigmoid(pre)
        dbias += ddt_c.sum((0, 1))
        ddt[:, piece] = ddt_c.transpose(0, 1)
    return dx, ddt, dA.t(), dB, dC, dD, dz, dbias, ddt_scale, carry.mT
