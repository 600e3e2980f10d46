"""The selective scan of Mamba: the public op."""

from torch import Tensor

from remamba.ops.backend import in_form, run
from remamba.ops.precision import accumulation_dtype, without_autocast
from remamba.ops.scan.reference import reference
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.time_step.lengths import fold_lengths


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_scale: Tensor | None = None,
    lengths: Tensor | None = None, initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, l, e) in x's dtype and the final state (b, e, n) of Mamba's selective scan.

        step = softplus(dt + dt_bias) * dt_scale
        h_t  = exp(step_t * A) * h_{t-1} + step_t * B_t * x_t
        y_t  = (C_t . h_t + D * x_t) * silu(z_t)

    Mamba, arXiv 2312.00752, Eq. 2 and Algorithm 2; dt_scale is alpha of ReMamba's Eq. 8 in its
    exact form, 1 when None.

    x, dt, z (b, l, e); A (e, n), negative; B, C (b, l, n); D, dt_bias (e,); dt_scale (b, l);
    lengths (b,) integers; initial_state (b, e, n), zeros when None. At or past a row's length the
    state passes unchanged and y is finite but means nothing. State and sums are float32 (float64
    for float64 x), under autocast too.
    """
    with without_autocast(x):
        dt_scale = fold_lengths(dt_scale, lengths, x, accumulation_dtype(x))
        inputs = ScanInputs(x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state)
        return run("selective_scan", x.device, inputs) if x.numel() else reference(inputs)


selective_scan_ref = in_form(selective_scan, "ref")
"""selective_scan step by step, as the paper writes it."""
