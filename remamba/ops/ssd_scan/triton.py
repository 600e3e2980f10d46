"""Mamba-2's scan in triton: which calls its kernels take, and the op as autograd sees it."""

from __future__ import annotations

import torch
import triton

from remamba.ops.recording import is_recorded
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.ssd_scan.torch import ssd_torch
from remamba.ops.ssd_scan.triton_backward import recorded
from remamba.ops.ssd_scan.triton_forward import TRITON_DTYPES, forward, product_dtype

# a head's state as an operand, and its sides: what fits into a multiprocessor's shared memory
MAX_HEAD_DIM, MAX_STATE, MAX_STATE_BYTES = 128, 256, 64 * 128 * 4


def ssd_triton(
    inputs: ScanInputs, *, dt_limit: tuple[float, float], chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ssd, for l > 0; the kernels choose chunks of their own.

    States too large for the kernels, and float64, go to the torch form. dt_scale must not be
    negative. Products take the dtype of x, B and C and add in float32: for bfloat16 the decayed
    scores, the scaled inputs and the state that a chunk starts from are rounded to it, as
    operands, never as sums.
    """
    if not fits(inputs.x, inputs.B, inputs.C):
        return ssd_torch(inputs, dt_limit=dt_limit, chunk_size=chunk_size)
    if is_recorded(*inputs):
        return recorded(*inputs, *dt_limit)[:2]
    return forward(inputs, *dt_limit)[:2]


def fits(x: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> bool:
    """Whether the kernels have room for a head's state, and products for the dtypes."""
    p, n, dtype = x.shape[3], B.shape[3], product_dtype(x, B, C)
    size = triton.next_power_of_2(p) * triton.next_power_of_2(n) * dtype.itemsize
    is_small = p <= MAX_HEAD_DIM and n <= MAX_STATE and size <= MAX_STATE_BYTES
    return is_small and dtype in TRITON_DTYPES
