"""The Mamba mixer (arXiv 2312.00752; also Falcon-Mamba's), with the adaption in its time step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from remamba.configuration_remamba import ReMambaConfig
from remamba.model.layer_rules import StepRule, Steps
from remamba.model.layers import CausalConv1d, projection
from remamba.model.recomputed import Recomputed, is_repeatable
from remamba.model.time_step import Adaption, DtAdaption
from remamba.ops import (
    decay_rate,
    rms_norm,
    selective_scan,
    selective_state_update,
)

NO_LIMIT = (0.0, math.inf)
"""Mamba's Delta has no bounds."""


def initial_dt_bias(config: ReMambaConfig, channels: int) -> Tensor:
    """(channels,) inverse softplus of time steps drawn log-uniformly from the configured range."""
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = torch.exp(torch.rand(channels) * (high - low) + low).clamp(min=config.time_step_floor)
    return dt + torch.log(-torch.expm1(-dt))


def reset_projections(
    in_proj: nn.Linear, conv1d: CausalConv1d, out_proj: nn.Linear, config: ReMambaConfig
) -> None:
    """torch's initial values, out_proj scaled down by the number of layers (as in GPT-2)."""
    for linear in (in_proj, out_proj):
        linear.reset_parameters()
    out_proj.weight.div_(math.sqrt(config.num_hidden_layers))
    bound = conv1d.weight.shape[-1] ** -0.5
    conv1d.weight.uniform_(-bound, bound)
    if conv1d.bias is not None:
        conv1d.bias.zero_()


class MambaMixer(nn.Module):
    """in_proj, convolution, selective scan, gate, out_proj: one forward for one token or many."""

    def __init__(self, config: ReMambaConfig):
        super().__init__()
        d, e, n = config.hidden_size, config.intermediate_size, config.state_size
        self.sizes = [config.time_step_rank, n, n]
        self.in_proj = projection(config, d, 2 * e, config.use_bias)
        self.conv1d = CausalConv1d(e, config.conv_kernel, config.use_conv_bias)
        self.x_proj = nn.Linear(e, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.time_step_rank, e, bias=True)
        self.A_log = nn.Parameter(torch.empty(e, n))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = projection(config, e, d, config.use_bias)
        self.adaption = DtAdaption(e)
        self.norm_eps = config.mixer_rms_eps if config.backbone_type == "falcon_mamba" else None
        self.reset_parameters(config)

    @torch.no_grad()
    def reset_parameters(self, config: ReMambaConfig) -> None:
        """Mamba's own initial values for A, D and time step; none on "meta"."""
        if self.A_log.is_meta:
            return
        self.A_log.copy_(torch.arange(1, config.state_size + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        reset_projections(self.in_proj, self.conv1d, self.out_proj, config)
        self.x_proj.reset_parameters()
        scale = config.time_step_rank**-0.5
        self.dt_proj.weight.uniform_(-scale, scale)
        self.dt_proj.bias.copy_(initial_dt_bias(config, config.intermediate_size))
        self.adaption.theta.zero_()

    def forward(
        self,
        hidden: Tensor,
        lengths: Tensor | None = None,
        dt_scale: Tensor | None = None,
        adaption: Adaption | None = None,
        conv_state: Tensor | None = None,
        ssm_state: Tensor | None = None,
        rule: StepRule | None = None,
        recomputed: Recomputed | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (b, l, d) -> output (b, l, d), conv_state (b, w - 1, e), ssm_state (b, e, n).

        Args:
            lengths: (b,) real tokens of each row; None when all l are.
            dt_scale: (b, l) factor after softplus, 0 at a pad; None when all are 1.
            adaption: the kept positions of stage 2.
            conv_state, ssm_state: what an earlier piece of the same rows returned.
            rule: what becomes of the time steps.
            recomputed: is told what the backward pass can make again.
        """
        u, z = self.in_proj(hidden).chunk(2, dim=-1)
        before = conv_state
        x, conv_state = self.conv1d(u, lengths, before)
        if recomputed is not None:
            recomputed.add(x, lambda: self.conv1d(u, lengths, before)[0])
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        if self.norm_eps is not None:  # Falcon-Mamba normalises all three, without weights
            dt, B, C = (rms_norm(t, eps=self.norm_eps)[0] for t in (dt, B, C))
        # a matrix: torch adds the bias to a product of three axes in a pass of its own
        low_rank, shape = dt.flatten(0, 1), x.shape
        dt = self.dt_proj(low_rank).view(shape)
        if recomputed is not None and is_repeatable(self.dt_proj):
            recomputed.add(dt, lambda: self.dt_proj(low_rank).view(shape))
        if adaption is not None:
            # its bias, asked of the module itself: hooks may bring its weights for the call alone
            bias = None if adaption.exact else self.dt_proj(dt.new_zeros(1, self.sizes[0]))[0]
            dt = self.adaption(dt, adaption, bias)
        A = decay_rate(self.A_log)
        if rule is not None:
            dt, A, dt_scale, *_ = rule(Steps(dt, A, dt_scale, None, NO_LIMIT))
        if hidden.shape[1] == 1 and ssm_state is not None:
            y, ssm_state = selective_state_update(
                x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], self.D, z=z[:, 0],
                dt_scale=None if dt_scale is None else dt_scale[:, 0], state=ssm_state,
            )  # fmt: skip
            y = y.unsqueeze(1)
        else:
            y, ssm_state = selective_scan(
                x, dt, A, B, C, self.D,
                z=z, dt_scale=dt_scale, initial_state=ssm_state,
            )  # fmt: skip
        return self.out_proj(y), conv_state, ssm_state
