"""A whole decode step in one call of C (decode_step.c), for inference on a CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from remamba.ops.backend import limited
from remamba.ops.compiled import TYPES, address, function, unfit
from remamba.ops.decode_layer.weights import BlockWeights, Mamba2Weights, MambaWeights

MOST_ROWS = 16
"""Of a batch, as in the source; more are better multiplied by torch."""
LANES = 16
"""Floats of the widest vector: how much scratch memory a row may need beyond its values."""
ARGUMENTS = struct.Struct("5Q17qd")
"""`struct DecodeArguments` of the source, which the layers lie behind."""
LAYER = struct.Struct("15Q3q4d")
"""`struct Layer` of the source."""


def _fits(
    blocks: Sequence[BlockWeights], residual: Tensor | None, conv_states: Sequence[Tensor],
    ssm_states: Sequence[Tensor], norm: Tensor, eps: float, lm_head: Tensor,
) -> str:  # fmt: skip
    conv, ssm = conv_states[0], ssm_states[0]
    if len(ssm) > MOST_ROWS:
        return f"more than {MOST_ROWS} rows"
    if ssm.dtype != torch.float32:
        return "states not of float32"
    if not (conv.is_contiguous() and ssm.is_contiguous() and lm_head.is_contiguous()):
        return "rows of states or weights that do not lie side by side"
    dtype = blocks[0].in_proj.dtype
    for weights in blocks:
        multiplied = [weights.norm, weights.in_proj, weights.conv, weights.out_proj]
        multiplied += [
            t for t in (weights.in_bias, weights.conv_bias, weights.out_bias) if t is not None
        ]
        if isinstance(weights, MambaWeights):
            multiplied += [weights.x_proj, weights.dt_proj]
        elif isinstance(weights, Mamba2Weights):
            multiplied.append(weights.gated_norm)
        if any(t.dtype != dtype for t in multiplied):
            return "weights of several dtypes"
        if why := unfit(*weights.tensors()):
            return why
    return unfit(residual, conv, ssm, norm, lm_head)


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

    The layers' states move on in place; norm (d,) is the final one. Between the products
    everything is float32, whatever the weights are.
    """
    first, (b, d), threads = blocks[0], residual.shape, torch.get_num_threads()
    residual = residual.contiguous()
    e, n, projected = first.out_proj.shape[1], ssm_states[0].shape[-1], len(first.in_proj)
    rank, heads, groups = 0, 0, 0
    if isinstance(first, MambaWeights):
        rank = first.dt_proj.shape[1]
    elif isinstance(first, Mamba2Weights):
        heads, groups = len(first.A_log), first.groups
    logits = torch.empty(b, len(lm_head), dtype=torch.float32)
    widest = max(d, e, projected) + LANES
    scratch = torch.empty((5 + threads) * (b * widest + b * (rank + 2 * n + LANES) + LANES))
    block = ARGUMENTS.pack(
        address(residual), address(norm), address(lm_head), address(logits), address(scratch),
        TYPES[residual.dtype], TYPES[lm_head.dtype], TYPES[norm.dtype],
        TYPES[first.in_proj.dtype], TYPES[conv_states[0].dtype],
        len(blocks), b, d, e, projected, first.conv.shape[-1], n, rank, heads, groups,
        len(lm_head), threads, eps,
    )  # fmt: skip
    layers = map(_layer, blocks, conv_states, ssm_states)
    function("decode_step")(block + b"".join(layers))
    return logits.to(lm_head.dtype)


def _layer(w: BlockWeights, window: Tensor, state: Tensor) -> bytes:
    x_proj = dt_proj = gated_norm = None
    eps, limit = -1.0, (0.0, float("inf"))
    if isinstance(w, MambaWeights):
        x_proj, dt_proj = w.x_proj, w.dt_proj
        eps = -1.0 if w.mixer_eps is None else w.mixer_eps
    elif isinstance(w, Mamba2Weights):
        gated_norm, eps, limit = w.gated_norm, w.gated_eps, w.dt_limit
    tensors = (
        w.norm, w.in_proj, w.in_bias, w.conv, w.conv_bias, w.dt_bias, w.A_log, w.D, w.out_proj,
        w.out_bias, x_proj, dt_proj, gated_norm, window, state,
    )  # fmt: skip
    types = (TYPES[t.dtype] for t in (w.dt_bias, w.A_log, w.D))
    return LAYER.pack(*map(address, tensors), *types, w.norm_eps, eps, *limit)
