"""A block of a decode step in few launches, everything in place.

One row takes four of them (Mamba) or three (Mamba-2); for several rows what one row does on the
way, once for each program, is done once in a launch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from remamba.ops.backend import limited
from remamba.ops.decode_layer.triton_few_rows import MOST_ROWS, few_rows_product, tiles_for
from remamba.ops.decode_layer.weights import MOST_STATE, BlockWeights, Mamba2Weights, MambaWeights
from remamba.ops.norm.op import gated_rms_norm, rms_norm
from remamba.ops.state_update.triton import selective_step, selective_step_of_rows, ssd_step


def _fits(
    blocks: object, residual: object, conv_states: object, ssm_states: Sequence[torch.Tensor],
    *others: object,
) -> str:  # fmt: skip
    state = ssm_states[0]
    if state.dtype != torch.float32:
        return "states not of float32"
    if state.shape[-1] > MOST_STATE:
        return f"more than {MOST_STATE} states a channel"
    return f"more than {MOST_ROWS} rows" if len(state) > MOST_ROWS else ""


@limited(_fits)
def decode_logits(
    blocks: Sequence[BlockWeights],
    residual: torch.Tensor,
    conv_states: Sequence[torch.Tensor],
    ssm_states: Sequence[torch.Tensor],
    norm: torch.Tensor,
    eps: float,
    lm_head: torch.Tensor,
) -> torch.Tensor:
    """Logits (b, vocab) in lm_head's dtype, behind one token a row whose embedding is residual.

    residual (b, d) is overwritten, the layers' states move on in place; norm (d,) is the final one.
    """
    layer = mamba_layer if isinstance(blocks[0], MambaWeights) else mamba2_layer
    for weights, conv_state, ssm_state in zip(blocks, conv_states, ssm_states, strict=True):
        layer(weights, residual, conv_state, ssm_state)  # type: ignore[arg-type]
    logits = residual.new_empty(len(residual), len(lm_head), dtype=lm_head.dtype)
    _normed_product(residual, norm, eps, lm_head, logits)
    return logits


def _normed_product(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    out: torch.Tensor,
    **options: Any,
) -> None:
    """few_rows_product of norm(x): one row is normed on the way, several are by themselves.

    Every program of the product needs the norm, which for one row costs less than a launch.
    """
    if len(x) == 1:
        few_rows_product(x, weight, out, norm_weight=norm, eps=eps, **options)
    else:
        few_rows_product(rms_norm(x, norm, eps=eps)[0], weight, out, **options)


def mamba_layer(
    w: MambaWeights, residual: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor
) -> None:
    """residual += mixer(norm(residual)) for one token a row; states move on in place.

    residual (b, d); conv_state (b, w-1, e); ssm_state (b, e, n) float32.
    """
    b, e = len(residual), len(w.A_log)
    dtype = w.in_proj.dtype
    xz = residual.new_empty(b, 2 * e, dtype=dtype)
    _normed_product(
        residual, w.norm, w.norm_eps, w.in_proj, xz, bias=w.in_bias,
        window=conv_state, conv_weight=w.conv, conv_bias=w.conv_bias, conv_columns=(0, e),
    )  # fmt: skip
    x, z = xz[:, :e], xz[:, e:]
    y = residual.new_empty(b, e, dtype=dtype)
    if b == 1:
        splits = tiles_for(b)[2].splits
        parts = residual.new_empty(splits, b, len(w.x_proj), dtype=torch.float32)
        few_rows_product(x, w.x_proj, parts)
        selective_step(parts, x, z, w.dt_proj, w.dt_bias, w.A_log, w.D, ssm_state, y, w.mixer_eps)
    else:
        low = residual.new_empty(b, len(w.x_proj), dtype=dtype)
        few_rows_product(x, w.x_proj, low)
        n = w.A_log.shape[1]
        dt, B, C = low.split([low.shape[1] - 2 * n, n, n], dim=1)
        if w.mixer_eps is not None:
            dt, B, C = (rms_norm(t, eps=w.mixer_eps)[0] for t in (dt, B, C))
        projected = residual.new_empty(b, e, dtype=dtype)
        few_rows_product(dt, w.dt_proj, projected, bias=w.dt_bias)
        selective_step_of_rows(x, projected, z, w.A_log, B, C, w.D, ssm_state, y)
    few_rows_product(y, w.out_proj, residual, bias=w.out_bias, add=True)


def mamba2_layer(
    w: Mamba2Weights, residual: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor
) -> None:
    """residual += mixer(norm(residual)) for one token a row; states move on in place.

    residual (b, d); conv_state (b, w-1, e + 2gn); ssm_state (b, h, p, n) float32.
    """
    b, h, p, n = ssm_state.shape
    e, gn = h * p, w.groups * n
    dtype = w.in_proj.dtype
    zxBCdt = residual.new_empty(b, w.in_proj.shape[0], dtype=dtype)
    _normed_product(
        residual, w.norm, w.norm_eps, w.in_proj, zxBCdt, bias=w.in_bias, window=conv_state,
        conv_weight=w.conv, conv_bias=w.conv_bias, conv_columns=(e, 2 * e + 2 * gn),
    )  # fmt: skip
    z, x, B, C, dt = zxBCdt.split([e, e, gn, gn, h], dim=1)
    B, C = B.unflatten(1, (w.groups, n)), C.unflatten(1, (w.groups, n))
    y = residual.new_empty(b, e, dtype=dtype)
    gate = z if b == 1 else None
    ssd_step(x, dt, gate, w.A_log, B, C, w.D, w.dt_bias, w.dt_limit, ssm_state, y)
    norm: dict[str, Any] = {}
    if b == 1:
        norm = {"norm_weight": w.gated_norm, "eps": w.gated_eps, "groups": w.groups}
    else:
        y = gated_rms_norm(y, z, w.gated_norm, groups=w.groups, eps=w.gated_eps)
    few_rows_product(y, w.out_proj, residual, bias=w.out_bias, add=True, **norm)
