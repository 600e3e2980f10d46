"""A block of a decode step in four launches (Mamba) or three (Mamba-2), everything in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from remamba.ops.decode_layer import Mamba2Weights, MambaWeights
from remamba.ops.few_rows_triton import few_rows_product, tiles_for
from remamba.ops.state_update_triton import selective_step, ssd_step


def decode_logits(
    blocks: Sequence[MambaWeights] | Sequence[Mamba2Weights],
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
    few_rows_product(residual, lm_head, logits, norm_weight=norm, eps=eps)
    return logits


def mamba_layer(
    w: MambaWeights, residual: torch.Tensor, conv_state: torch.Tensor, ssm_state: torch.Tensor
) -> None:
    """residual += mixer(norm(residual)) for one token a row; states move on in place.

    residual (b, d); conv_state (b, w-1, e); ssm_state (b, e, n) float32.
    """
    b, e = len(residual), len(w.A_log)
    dtype = w.in_proj.dtype
    xz = residual.new_empty(b, 2 * e, dtype=dtype)
    few_rows_product(
        residual, w.in_proj, xz, bias=w.in_bias, norm_weight=w.norm, eps=w.norm_eps,
        window=conv_state, conv_weight=w.conv, conv_bias=w.conv_bias, conv_columns=(0, e),
    )  # fmt: skip
    x, z = xz[:, :e], xz[:, e:]
    parts = residual.new_empty(tiles_for(b)[2].splits, b, w.x_proj.shape[0], dtype=torch.float32)
    few_rows_product(x, w.x_proj, parts)
    y = residual.new_empty(b, e, dtype=dtype)
    selective_step(parts, x, z, w.dt_proj, w.dt_bias, w.A_log, w.D, ssm_state, y, w.mixer_eps)
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
    few_rows_product(
        residual, w.in_proj, zxBCdt, bias=w.in_bias, norm_weight=w.norm, eps=w.norm_eps,
        window=conv_state, conv_weight=w.conv, conv_bias=w.conv_bias,
        conv_columns=(e, 2 * e + 2 * gn),
    )  # fmt: skip
    z, x, B, C, dt = zxBCdt.split([e, e, gn, gn, h], dim=1)
    B, C = B.unflatten(1, (w.groups, n)), C.unflatten(1, (w.groups, n))
    y = residual.new_empty(b, e, dtype=dtype)
    ssd_step(x, dt, z, w.A_log, B, C, w.D, w.dt_bias, w.dt_limit, ssm_state, y)
    few_rows_product(
        y, w.out_proj, residual, bias=w.out_bias, norm_weight=w.gated_norm, eps=w.gated_eps,
        groups=w.groups, add=True,
    )  # fmt: skip
