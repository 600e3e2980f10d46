"""The Mamba-2 mixer (arXiv 2405.21060), with ReMamba's adaption in its time step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remamba.configuration_remamba import ReMambaConfig
from remamba.model.layer_rules import StepRule, Steps
from remamba.model.layers import CausalConv1d, GatedRMSNorm, projection
from remamba.model.mamba import initial_dt_bias, reset_projections
from remamba.model.recomputed import Recomputed
from remamba.model.time_step import Adaption, DtAdaption
from remamba.ops import decay_rate, ssd, ssd_state_update


class Mamba2Mixer(nn.Module):
    """in_proj to [z, x, B, C, dt], convolution, SSD, gated norm, out_proj."""

    def __init__(self, config: ReMambaConfig):
        super().__init__()
        d, e, h = config.hidden_size, config.intermediate_size, config.num_heads
        self.groups, self.head_dim = config.n_groups, config.head_dim
        self.chunk_size, self.dt_limit = config.chunk_size, config.dt_limit
        state_channels = config.n_groups * config.state_size
        conv_channels = e + 2 * state_channels
        self.projected_sizes = [e, conv_channels, h]
        self.conv_sizes = [e, state_channels, state_channels]
        self.in_proj = projection(config, d, sum(self.projected_sizes), config.use_bias)
        self.conv1d = CausalConv1d(conv_channels, config.conv_kernel, config.use_conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(h))
        self.A_log = nn.Parameter(torch.empty(h))
        self.D = nn.Parameter(torch.ones(h))
        self.norm = GatedRMSNorm(e, config.n_groups, config.layer_norm_epsilon)
        self.out_proj = projection(config, e, d, config.use_bias)
        self.adaption = DtAdaption(h)
        self.reset_parameters(config)

    @torch.no_grad()
    def reset_parameters(self, config: ReMambaConfig) -> None:
        """Mamba-2's own initial values for A, D and time step; none on "meta"."""
        if self.A_log.is_meta:
            return
        self.A_log.copy_(torch.arange(1, config.num_heads + 1).log())
        self.D.fill_(1.0)
        reset_projections(self.in_proj, self.conv1d, self.out_proj, config)
        self.dt_bias.copy_(initial_dt_bias(config, config.num_heads))
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
        """hidden (b, l, d) -> output (b, l, d), conv_state (b, w - 1, c), ssm_state (b, h, p, n).

        Args:
            lengths: (b,) real tokens of each row; None when all l are.
            dt_scale: (b, l) factor after softplus, 0 at a pad; None when all are 1.
            adaption: the kept positions of stage 2.
            conv_state, ssm_state: what an earlier piece of the same rows returned.
            rule: what becomes of the time steps.
            recomputed: is told what the backward pass can make again.
        """
        z, u, dt = self.in_proj(hidden).split(self.projected_sizes, dim=-1)
        before = conv_state
        xBC, conv_state = self.conv1d(u, lengths, before)
        if recomputed is not None:
            recomputed.add(xBC, lambda: self.conv1d(u, lengths, before)[0])
        x, B, C = xBC.split(self.conv_sizes, dim=-1)
        x = x.unflatten(-1, (-1, self.head_dim))
        B, C = B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))
        if adaption is not None:
            dt = self.adaption(dt, adaption)
        A = decay_rate(self.A_log)
        if rule is not None:
            dt, A, dt_scale, *_ = rule(Steps(dt, A, dt_scale, self.dt_bias, self.dt_limit))
        if hidden.shape[1] == 1 and ssm_state is not None:
            y, ssm_state = ssd_state_update(
                x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], self.D,
                dt_bias=self.dt_bias, dt_limit=self.dt_limit,
                dt_scale=None if dt_scale is None else dt_scale[:, 0], state=ssm_state,
            )  # fmt: skip
            y = y.unsqueeze(1)
        else:
            y, ssm_state = ssd(
                x, dt, A, B, C, self.D,
                dt_bias=self.dt_bias, dt_limit=self.dt_limit, dt_scale=dt_scale,
                initial_state=ssm_state, chunk_size=self.chunk_size,
            )  # fmt: skip
        y = y.flatten(-2)
        normed = self.norm(y, z)
        if recomputed is not None:
            recomputed.add(normed, lambda: self.norm(y, z))
        return self.out_proj(normed), conv_state, ssm_state
