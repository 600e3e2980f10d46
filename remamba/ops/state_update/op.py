"""One decode step of either scan: the scan at l = 1 without the axis l."""

import torch
import torch.nn.functional as F
from torch import Tensor

from remamba.ops.backend import run
from remamba.ops.precision import without_autocast
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import LOG2_E, time_step


def selective_state_update(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_scale: Tensor | None = None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, e) in x's dtype and the new state (b, e, n): one step of `selective_scan`.

    x, dt, z (b, e); A (e, n); B, C (b, n); D, dt_bias (e,); dt_scale (b,); state (b, e, n), left
    as it is. Computed in the state's dtype, under autocast too.
    """
    with without_autocast(x):
        inputs = ScanInputs(x, dt, A, B, C, D, z, dt_bias, dt_scale, state)
        return run("selective_state_update", x.device, inputs)


def ssd_state_update(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    dt_bias: Tensor | None = None, dt_limit: tuple[float, float] = (0.0, float("inf")),
    dt_scale: Tensor | None = None, state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, h, p) in x's dtype and the new state (b, h, p, n): one step of `ssd`.

    x (b, h, p); dt (b, h); A, D, dt_bias (h,); B, C (b, g, n); dt_scale (b,); state (b, h, p, n),
    left as it is. Computed in the state's dtype, under autocast too.
    """
    with without_autocast(x):
        inputs = ScanInputs(x, dt, A, B, C, D, None, dt_bias, dt_scale, state)
        return run("ssd_state_update", x.device, inputs, dt_limit=dt_limit)


def selective_state_update_torch(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """selective_state_update in few torch calls: for one row on a CPU the calls are the cost."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, state = inputs
    assert state is not None, "a step starts from a state"
    dtype = state.dtype
    u = x.to(dtype)
    step = time_step(dt, dt_bias, dt_scale, dtype)
    decay = ((step * LOG2_E).unsqueeze(2) * A.to(dtype)).exp2_()
    state = (state * decay).addcmul_((step * u).unsqueeze(2), B.to(dtype).unsqueeze(1))
    y = torch.matmul(state, C.to(dtype).unsqueeze(2)).squeeze(2)
    if D is not None:
        y = y.addcmul_(u, D.to(dtype))
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state


def ssd_state_update_torch(inputs: ScanInputs, *, dt_limit) -> tuple[Tensor, Tensor]:
    """ssd_state_update in few torch calls; the heads of a group share B and C by broadcasting."""
    x, dt, A, B, C, D, _, dt_bias, dt_scale, state = inputs
    assert state is not None, "a step starts from a state"
    dtype = state.dtype
    g, n = B.shape[1:]
    u = x.to(dtype)
    step = time_step(dt, dt_bias, dt_scale, dtype, dt_limit)
    decay = (step * A.to(dtype) * LOG2_E).exp2_()
    state = state * decay[..., None, None]
    added = (u * step.unsqueeze(2)).unflatten(1, (g, -1)).unsqueeze(4)  # (b, g, h/g, p, 1)
    state.unflatten(1, (g, -1)).addcmul_(added, B.to(dtype)[:, :, None, None])
    rows = state.reshape(len(x), g, -1, n)  # the h/g * p rows that a group's C reads
    y = torch.matmul(rows, C.to(dtype).unsqueeze(3)).view(x.shape)
    if D is not None:
        y = y.addcmul_(u, D.to(dtype).unsqueeze(1))
    return y.to(x.dtype), state
