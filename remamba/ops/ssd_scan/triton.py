"""Mamba-2's scan in triton: which calls its kernels take, and the op as autograd sees it."""

from __future__ import annotations

import torch
import triton

from remamba.ops.backend import limited
from remamba.ops.recording import is_recorded
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.ssd_scan.triton_backward import recorded
from remamba.ops.ssd_scan.triton_forward import TRITON_DTYPES, forward, product_dtype

# a head's state as an operand, and its sides: what fits into a multiprocessor's shared memory
MAX_HEAD_DIM, MAX_STATE, MAX_STATE_BYTES = 128, 256, 64 * 128 * 4


def fits(inputs: ScanInputs, **options: object) -> str:
    """Why the kernels cannot take these inputs: no room for a head's state, or no such products."""
    p, n = inputs.x.shape[3], inputs.B.shape[3]
    dtype = product_dtype(inputs.x, inputs.B, inputs.C)
    if dtype not in TRITON_DTYPES:
        return "a dtype that is not float32, bfloat16 or float16"
    size = triton.next_power_of_2(p) * triton.next_power_of_2(n) * dtype.itemsize
    if p > MAX_HEAD_DIM or n > MAX_STATE or size > MAX_STATE_BYTES:
        return "a head's state is too large"
    return ""


@limited(fits)
def ssd_triton(
    inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd, for l > 0; the kernels choose chunks of their own.

    dt_scale must not be negative. Products take the dtype of x, B and C and add in float32: for
    bfloat16 the decayed scores, the scaled inputs and the state that a chunk starts from are
    rounded to it, as operands, never as sums.
    """
    if is_recorded(*inputs):
        return recorded(*inputs, *dt_limit)[:2]
    return forward(inputs, *dt_limit)[:2]
