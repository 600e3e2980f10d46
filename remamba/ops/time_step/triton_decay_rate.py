"""decay_rate in one launch instead of three, where nothing is differentiated."""

import torch
import triton
import triton.language as tl

from remamba.ops.device import on_device
from remamba.ops.recording import is_recorded
from remamba.ops.time_step.decay_rate import decay_rate_torch

BLOCK = 1024


@triton.jit
def _kernel(A_log, A, entries, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(A_log + i, mask=i < entries, other=0.0).to(tl.float32)
    tl.store(A + i, -tl.exp(v), mask=i < entries)


def decay_rate_triton(A_log: torch.Tensor) -> torch.Tensor:
    """decay_rate; autograd and compilers get torch's own operations."""
    if is_recorded(A_log):
        return decay_rate_torch(A_log)
    A_log = A_log.contiguous()
    A = torch.empty(A_log.shape, dtype=torch.float32, device=A_log.device)
    entries = A_log.numel()
    with on_device(A_log):
        _kernel[(-(-entries // BLOCK),)](A_log, A, entries, BLOCK=BLOCK, num_warps=4)
    return A
