"""What both models share as transformers knows them: outputs, initial values, loading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from remamba.bare_model import BaseReMamba
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.methods.selection import Kept, Span
from remamba.model.backbone import Block
from remamba.model.layers import GatedRMSNorm, RMSNorm
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.states import StateCache
from remamba.pretrained import HUB_OPTIONS, check_model, locate
from remamba.quantised import prepare, settle
from remamba.sizes import check_weights


@dataclass
class ReMambaOutput(ModelOutput):
    """What a forward returns; l' is the length of the last stage's sequence."""

    loss: Tensor | None = None
    """Cross-entropy of the labelled tokens by the last stage, mean over tokens."""
    logits: Tensor | None = None
    """(b, l', vocab), or (b, logits_to_keep, vocab) of each row's last positions."""
    labels: Tensor | None = None
    """(b, l') beside the logits: `logits[:, i]` predicts `labels[:, i + 1]`."""
    correct: Tensor | None = None
    """(b,) bool: the last stage predicts every labelled token of the row."""
    score_loss: Tensor | None = None
    stage1_loss: Tensor | None = None
    stage1_correct: Tensor | None = None
    document_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    """(b, l', d) after the final norm (ReMambaModel)."""
    cache_params: StateCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """(b, l', d) behind each layer (the sum that the next one reads), then behind the final norm;
    as many as transformers' Mamba gives. They are of the last stage: with compression on, of the
    spliced sequence, whatever part of it the logits are of."""
    kept: Kept | None = None
    scores: Tensor | None = None
    """(b, m) importance of each position of the span (Eq. 3), which `kept` was chosen by."""
    span: Span | None = None
    """The positions that were scored, of each document or row, in what was read of it."""
    chosen: Tensor | None = None
    """(b,) the chunk that each row goes on from (the method `chunks`); on the host."""


class ReMambaPreTrainedModel(BaseReMamba, PreTrainedModel):  # type: ignore[misc]
    """A backbone and a compressor, as transformers makes, loads and saves them."""

    config_class = ReMambaConfig
    base_model_prefix = "remamba"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ["Block"]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the configuration always tells the Auto classes where this class is."""

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embeddings = cast(nn.Embedding, value)

    def _set_gradient_checkpointing(  # type: ignore[override]
        self,
        enable: bool = True,
        gradient_checkpointing_func: Any = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Turn the recomputing of blocks on or off (called by transformers).

        Raises:
            InputError: by torch's reentrant way, which would lose the gradient of the scores.
        """
        given = getattr(gradient_checkpointing_func, "keywords", {})
        if given.get("use_reentrant"):
            raise InputError(
                "use_reentrant=True would lose the gradient of the scores, which every layer "
                "reads; leave it out, or give False"
            )
        # torch's own default is the reentrant way, which PEFT leaves in force
        function = partial(gradient_checkpointing_func, use_reentrant=False)
        for i, block in enumerate(cast(Iterable[Block], self.backbone.layers)):
            block._gradient_checkpointing_func = function
            block.gradient_checkpointing = enable and i % every_n_layers == 0

    def _mark_initial_values(self) -> None:
        """Every part has set its own initial values when it was made, unless it lies on "meta".

        transformers then sets those alone that `_is_hf_initialized` does not mark.
        """
        for module in self.modules():
            places = {parameter.is_meta for parameter in module.parameters()}
            if places == {False}:
                module._is_hf_initialized = True  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of a part that has none; its own parts have been given theirs before."""
        if isinstance(module, MambaMixer | Mamba2Mixer):
            module.reset_parameters(self.config)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | RMSNorm | GatedRMSNorm):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """Initial values of every part that has none yet (called by transformers)."""
        query = self.compressor.query_proj
        parts = (*query, *query.parameters())
        is_known = any(getattr(part, "_is_hf_initialized", False) for part in parts)
        super().initialize_weights()
        if not is_known:
            self.compressor.tie_query()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> Any:
        """A model from a directory, a hub name, or "remamba-tiny", which is in the package.

        The options are transformers'; None with `config` and `state_dict` makes a model of these.

        Raises:
            InputError: nothing there, another architecture, a corrupt file, or tensors that are
                missing or misshapen (they are named; nothing is initialised anew); weights asked
                for that cannot be quantised so (`remamba/quantised.py` tells which are).
        """
        name = pretrained_model_name_or_path
        if (name is None) != (kwargs.get("state_dict") is not None) or (
            name is None and kwargs.get("config") is None
        ):
            raise InputError(
                "give either a model's name, or None with both config= and state_dict=, which hold "
                "its sizes and weights"
            )
        path, values = None, dict[str, Any]()
        if name is not None:
            path = locate(name)
            hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
            values, more = check_model(path, **hub)
            kwargs |= more
            check_weights(cls, path, values, kwargs)
        name = name or "state_dict"
        is_quantised = prepare(str(name), values, kwargs)
        wanted_info = kwargs.pop("output_loading_info", False)
        # misshapen tensors are collected here and refused below, by name
        kwargs["ignore_mismatched_sizes"] = True
        try:
            loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except (RuntimeError, OSError, ImportError, ValueError) as error:
            if isinstance(error, ValueError) and not is_quantised:
                raise
            raise InputError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from error
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(
                " ".join(map(str, k)) if isinstance(k, tuple) else k for k in info[problem]
            ):
                others = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise InputError(
                    f"{name} has {problem.split('_')[0]} tensors: {', '.join(names[:3])}{others}"
                )
        if is_quantised:
            settle(model)
        return (model, info) if wanted_info else model
