"""Embeddings, blocks and the final norm: any Mamba from embeddings to last-layer states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from remamba.configuration_remamba import ReMambaConfig
from remamba.model.layer_rules import LayerRule, StepRule
from remamba.model.layers import RMSNorm
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.recomputed import Recomputed, is_worth_recomputing
from remamba.model.rows import take_positions, to_device
from remamba.model.states import StateCache
from remamba.model.time_step import Adaption
from remamba.ops.precision import accumulation_dtype
from remamba.ops.time_step.lengths import fold_lengths


class Block(nn.Module):
    """mixer(norm(residual + x)), and that sum: the next block's residual.

    The addition after a block is left to the next norm, which is one kernel with it. A block holds
    no state, so that checkpointing may run it again; transformers turns that on, block by block,
    by the two attributes below.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, config: ReMambaConfig):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = (Mamba2Mixer if config.backbone_type == "mamba2" else MambaMixer)(config)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        lengths: Tensor | None,
        dt_scale: Tensor | None,
        adaption: Adaption | None,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        rule: StepRule | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the mixer gives (b, l, d), the sum (b, l, d), and the states behind the rows."""
        given = (x, residual, lengths, dt_scale, adaption, conv_state, ssm_state, rule)
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self._run, *given)
        return self._run(*given)

    def _run(
        self,
        x: Tensor,
        residual: Tensor | None,
        lengths: Tensor | None,
        dt_scale: Tensor | None,
        adaption: Adaption | None,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        rule: StepRule | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed, total = self.norm(x, residual)
        residual = total.to(accumulation_dtype(total)) if self.residual_in_fp32 else total
        inputs = (normed, lengths, dt_scale, adaption, conv_state, ssm_state, rule)
        if is_worth_recomputing():
            with Recomputed() as recomputed:
                # the sum is kept in any case; narrower than the norm, it has lost digits
                if torch.promote_types(total.dtype, normed.dtype) == total.dtype:
                    recomputed.add(normed, lambda: self.norm(total)[0])
                mixed, conv_state, ssm_state = self.mixer(*inputs, recomputed)
        else:
            mixed, conv_state, ssm_state = self.mixer(*inputs)
        return mixed, residual, conv_state, ssm_state


class Backbone(nn.Module):
    """A Mamba, Mamba-2 or Falcon-Mamba without its language-model head."""

    def __init__(self, config: ReMambaConfig):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        nn.init.normal_(self.embeddings.weight, std=config.initializer_range)

    def forward(
        self,
        embeds: Tensor,
        lengths: Tensor | None = None,
        adaption: Adaption | None = None,
        cache: StateCache | None = None,
        every: list[Tensor] | None = None,
        rule: LayerRule | None = None,
    ) -> Tensor:
        """Last-layer states after the final norm, (b, l, d); fewer where a rule takes some out.

        Args:
            embeds: (b, l, d), right-padded.
            lengths: (b,) real tokens of each row; None when all l are. A pad changes no state.
            adaption: the kept positions of stage 2.
            cache: the pass starts from its states, if it has any, and leaves its own in it.
            every: gets the sum behind each block and then what is returned, (b, l, d) each.
            rule: what becomes of every layer's time steps; None: what the states in `cache` are to
                be gone on with, if they say. The states left there say it for what follows.
        """
        if rule is None and cache is not None:
            rule = cache.rule
        dt_scale = None if adaption is None else adaption.dt_scale
        # once for all layers, which would each do it in three small kernels
        dt_scale = fold_lengths(dt_scale, lengths, embeds, accumulation_dtype(embeds))
        x, residual = embeds, None
        is_differentiated = self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.layers):
            states = (None, None) if cache is None else (cache.conv_states[i], cache.ssm_states[i])
            own = None if rule is None else rule.at(i)
            x, residual, conv, ssm = block(x, residual, lengths, dt_scale, adaption, *states, own)
            if every is not None or (block.gradient_checkpointing and is_differentiated):
                # one tensor is wanted behind the block, or kept for the next, not two
                x, residual = residual + x, None
            if every is not None:
                every.append(x)
            if cache is not None:
                cache.update(i, conv, ssm)
            if own is not None and own.kept is not None and own.lengths is not None:
                x = take_positions(x, own.kept)
                residual = None if residual is None else take_positions(residual, own.kept)
                lengths = to_device(own.lengths, x.device)
                dt_scale = fold_lengths(None, lengths, x, accumulation_dtype(x))
        if cache is not None:
            cache.rule = None if rule is None else rule.behind
        hidden = self.norm_f(x, residual)[0]
        if every is not None:
            every.append(hidden)
        return hidden
