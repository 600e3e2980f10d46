"""The scan of Mamba-2 (state space duality): the public op."""

from torch import Tensor

from remamba.ops.backend import in_form, run
from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.ssd_scan.reference import reference
from remamba.ops.time_step.lengths import fold_lengths


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    dt_bias: Tensor | None = None, dt_limit: tuple[float, float] = (0.0, float("inf")),
    dt_scale: Tensor | None = None, lengths: Tensor | None = None,
    initial_state: Tensor | None = None, chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, l, h, p) in x's dtype and the final state (b, h, p, n) of Mamba-2's scan.

        step = clamp(softplus(dt + dt_bias), *dt_limit) * dt_scale
        h_t  = exp(step_t * A) * h_{t-1} + step_t * x_t B_t^T
        y_t  = h_t C_t + D * x_t

    Mamba-2, arXiv 2405.21060, sections 2 and 6; dt_scale is alpha of ReMamba's Eq. 8 in its exact
    form, 1 when None.

    x (b, l, h, p); dt (b, l, h); A (h,), negative; B, C (b, l, g, n), group i serving heads
    i*h/g to (i+1)*h/g; D, dt_bias (h,); dt_scale (b, l); lengths (b,) integers; initial_state
    (b, h, p, n), zeros when None. At or past a row's length the state passes unchanged and y is
    finite but means nothing. State and sums are float32 (float64 for float64 x), under autocast
    too. chunk_size changes speed, never the result.
    """
    with without_autocast(x):
        dt_scale = fold_lengths(dt_scale, lengths, x, accumulation_dtype(x))
        inputs = ScanInputs(x, dt, A, B, C, D, None, dt_bias, dt_scale, initial_state)
        if not x.numel():
            return reference(inputs, dt_limit=dt_limit, chunk_size=chunk_size)
        return run("ssd", x.device, inputs, dt_limit=dt_limit, chunk_size=chunk_size)


ssd_ref = in_form(ssd, "ref")
"""ssd step by step, as the paper writes it."""
