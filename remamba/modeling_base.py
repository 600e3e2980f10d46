"""What both models share: what they return, initial values, loading, and the method asked for."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from remamba.compression_config import CompressionConfig
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.methods.base import Method, method_of, own_method
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.selection import Compressor, Kept, Span
from remamba.model.backbone import Backbone
from remamba.model.layers import GatedRMSNorm, RMSNorm
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.states import StateCache
from remamba.pretrained import HUB_OPTIONS, check_model, locate, stored_shapes
from remamba.quantised import prepare, settle

LAYER = "backbone.layers.{}."
"""What the names of a layer's parameters begin with."""
LAYER_NAME = re.compile(r"backbone\.layers\.(\d{1,9})\.")
Compression = CompressionConfig | dict[str, Any] | bool | None
"""Settings of `remamba`; a dict: changes to the model's own. False: plain Mamba."""
MethodLike = str | dict[str, Any] | Method
"""A method's name, what its `to_dict` gave, or the method."""


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


def expected_shapes(kind: type[PreTrainedModel], config: ReMambaConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of a model by name, in its order; no memory is taken.

    All layers have the shapes of one, so a configuration of many is not slower.

    Raises:
        InputError: the sizes are beyond what can be counted.
    """
    one = copy.deepcopy(config)
    one.num_hidden_layers = 1
    try:
        with torch.device("meta"):
            model = kind(one)
    except RuntimeError as error:
        raise InputError(
            f"hidden_size = {config.hidden_size} with intermediate_size = "
            f"{config.intermediate_size} and state_size = {config.state_size} gives tensors that "
            "are too large to be counted; correct config.json"
        ) from error
    found: dict[str, torch.Size] = {}
    first = {n: x.shape for n, x in model.state_dict().items() if n.startswith(LAYER.format(0))}
    for name, tensor in model.state_dict().items():
        if name not in first:
            found[name] = tensor.shape
        elif name == next(iter(first)):
            for layer in range(config.num_hidden_layers):
                for own, shape in first.items():
                    found[LAYER.format(layer) + own.removeprefix(LAYER.format(0))] = shape
    return found


def check_weights(
    kind: type[PreTrainedModel], path: str, values: dict[str, Any], options: dict[str, Any]
) -> None:
    """Raise InputError where a model's sizes are not those of its weights, before memory is taken.

    Args:
        path: a directory; of a hub name nothing is known yet.
        values: of its config.json.
        options: of `from_pretrained`: a `config`, or settings in place of those of `values`.
    """
    try:
        config = _config_of(values, options)
        own_method(config)
        one = copy.deepcopy(config)
        one.num_hidden_layers = 1
        shapes = expected_shapes(kind, one)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: config.json: {error}") from error
    stored = stored_shapes(Path(path) / (options.get("subfolder") or ""))
    layers = {int(found[1]) for name in stored if (found := LAYER_NAME.match(name))}
    if not layers:
        return
    count, wanted = max(layers) + 1, config.num_hidden_layers
    if count != wanted:
        what = "missing" if wanted > count else "unexpected"
        raise InputError(
            f"{path} has {what} tensors: {LAYER.format(min(wanted, count))}*, since its weights "
            f"have {count} layers and num_hidden_layers = {wanted}; correct config.json"
        )
    for name, shape in shapes.items():
        if name in stored and stored[name] != tuple(shape):
            raise InputError(
                f"{path} has mismatched tensors: {name} is {stored[name]}, and {tuple(shape)} by "
                "the sizes of config.json; correct them, or copy the weights again"
            )


def _config_of(values: dict[str, Any], options: dict[str, Any]) -> ReMambaConfig:
    """The configuration that `from_pretrained` goes by."""
    if isinstance(given := options.get("config"), ReMambaConfig):
        return given
    known = inspect.signature(ReMambaConfig.__init__).parameters.keys() - {"self", "kwargs"}
    changes = {name: options[name] for name in known & options.keys()}
    return ReMambaConfig.from_dict({**values, **changes})


class ReMambaPreTrainedModel(PreTrainedModel):
    """A backbone and a compressor, as transformers makes, loads and saves them."""

    config_class = ReMambaConfig
    base_model_prefix = "remamba"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ["Block"]

    backbone: Backbone
    compressor: Compressor

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the configuration always tells the Auto classes where this class is."""

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embeddings = cast(nn.Embedding, value)

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
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
        super()._set_gradient_checkpointing(enable, function, **kwargs)

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
            module.reset_parameters(cast(ReMambaConfig, self.config))
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

    def new_cache(self) -> StateCache:
        """An empty cache with a place for each layer."""
        return StateCache(self.config.num_hidden_layers)

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

    def resolve_method(
        self, compression: Compression = None, method: MethodLike | None = None
    ) -> Method:
        """The way of reading meant.

        Args:
            compression: settings of `remamba`: a dict of changes to the model's own, or a
                CompressionConfig; False: plain Mamba; None: as `method` says.
            method: a name, a dict that `Method.to_dict` gave, or a Method; None: as `compression`
                says, and where that is None too, the model's own.

        Raises:
            InputError: both are given, there is no such method, or this model cannot read by it.
        """
        found = self._method_meant(compression, method)
        found.check(self)
        return found

    def _method_meant(self, compression: Compression, method: MethodLike | None) -> Method:
        if method is not None and compression is not None:
            raise InputError(
                f"give either method={method!r} or compression={compression!r}: compression holds "
                "the settings of the method 'remamba', and False means the method 'plain'"
            )
        if compression is False:
            return Plain()
        own = self.config.compression_config
        if method is not None:
            return method_of(method, own)
        if compression is None:
            return own_method(self.config)
        if isinstance(compression, dict):
            return ReMamba(own.replace(**compression))
        if not isinstance(compression, CompressionConfig):
            raise InputError(
                f"compression={compression!r}; give None, False, a dict or a CompressionConfig"
            )
        return ReMamba(compression)
