"""A whole decode step in C (decode.c), for inference on a CPU."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, function
from remamba.ops.decode_layer.weights import BlockWeights, Mamba2Weights, MambaWeights

MOST_ROWS = 8
"""More rows are faster by torch's own products, which use each weight for many rows at once."""
BLOCK = struct.Struct("15Q5q5d")
"""`DecodeBlock` of the source."""
ARGUMENTS = struct.Struct("7Qd13q")
"""`DecodeArguments` of the source."""


def _fits(
    blocks: Sequence[BlockWeights], residual: object, conv_states: object,
    ssm_states: Sequence[Tensor], *others: object,
) -> str:  # fmt: skip
    if ssm_states[0].dtype != torch.float32:
        return "states not of float32"
    first = blocks[0]
    kinds = {first.norm.dtype, first.A_log.dtype, first.D.dtype, first.dt_bias.dtype}
    if not kinds <= TYPES.keys():
        return "a dtype that is neither float32 nor bfloat16"
    return f"more than {MOST_ROWS} rows" if len(ssm_states[0]) > MOST_ROWS else ""


@limited(_fits)
def decode_logits_c(
    blocks: Sequence[BlockWeights],
    residual: Tensor,
    conv_states: Sequence[Tensor],
    ssm_states: Sequence[Tensor],
    norm: Tensor,
    eps: float,
    lm_head: Tensor,
) -> Tensor:
    """Logits (b, vocab) in lm_head's dtype, behind one token a row whose embedding is residual.

    residual (b, d); the layers' states move on in place; norm (d,) is the final one. Sums, and what
    stands between products, are float32.
    """
    b, d = residual.shape
    residual = residual.float().contiguous()
    n = ssm_states[0].shape[-1]
    e = blocks[0].out_proj.shape[1]
    is_mamba = isinstance(blocks[0], MambaWeights)
    rank = blocks[0].dt_proj.shape[1] if isinstance(blocks[0], MambaWeights) else 0
    heads, groups = 0, 1
    if isinstance(blocks[0], Mamba2Weights):
        heads, groups = len(blocks[0].A_log), blocks[0].groups
    packed = ctypes.create_string_buffer(
        b"".join(_packed(*one) for one in zip(blocks, conv_states, ssm_states, strict=True))
    )
    threads = torch.get_num_threads()
    low = rank + 2 * n
    whole = 2 * e + (low if is_mamba else 2 * groups * n + heads)
    scratch = residual.new_empty(b * (whole + e) + threads * b * (max(d, e) + low))
    logits = residual.new_empty(b, len(lm_head))
    meeting = torch.zeros(2, dtype=torch.long)  # of the threads
    function("decode_logits")(
        ARGUMENTS.pack(
            ctypes.addressof(packed),
            *map(address, (norm, lm_head, residual, logits, scratch, meeting)), eps, len(blocks),
            b, d, e, n, rank, blocks[0].conv.shape[-1], len(lm_head), heads, groups,
            TYPES[norm.dtype], TYPES[lm_head.dtype], threads,
        )
    )  # fmt: skip
    return logits.to(lm_head.dtype)


def _packed(w: BlockWeights, window: Tensor, state: Tensor) -> bytes:
    """A block as the source's `DecodeBlock`."""
    x_proj = dt_proj = gated = None
    mixer_eps, gated_eps, limit = -1.0, 0.0, (0.0, math.inf)
    if isinstance(w, MambaWeights):
        x_proj, dt_proj = w.x_proj, w.dt_proj
        mixer_eps = -1.0 if w.mixer_eps is None else w.mixer_eps
    elif isinstance(w, Mamba2Weights):
        gated, gated_eps, limit = w.gated_norm, w.gated_eps, w.dt_limit
    tensors = (
        w.norm, w.in_proj, w.in_bias, w.conv, w.conv_bias, w.dt_bias, w.A_log, w.D, w.out_proj,
        w.out_bias, x_proj, dt_proj, gated, window, state,
    )  # fmt: skip
    kinds = (w.norm, w.dt_bias, w.A_log, w.D, window)
    return BLOCK.pack(
        *map(address, tensors), *(TYPES[t.dtype] for t in kinds), w.norm_eps,
        mixer_eps, gated_eps, *limit,
    )  # fmt: skip
