"""A published Mamba, Mamba-2 or Falcon-Mamba as a model in memory, without a converted copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from remamba.checkpoints.convert import (
    IN_PROJ,
    OUT_PROJ,
    THETA,
    check_weights,
    drop_tied_head,
    expected_shapes,
    initial_compressor,
    is_new,
)
from remamba.checkpoints.layouts import TRANSFORMERS_CONFIGS, Weights, fetch, read_config
from remamba.errors import InputError
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import hub_options_for, locate


def is_published(name: str | Path) -> bool:
    """Whether a directory or a hub name holds a published Mamba, and no ReMamba.

    Only its config.json is read; False as well where that cannot be read.
    """
    place = locate(name)
    try:
        if Path(place).is_dir():
            values = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
        else:
            values, _ = PretrainedConfig.get_config_dict(place, **hub_options_for(place))
    except (OSError, ValueError):
        return False
    if not isinstance(values, dict):
        return False
    kind = values.get("model_type")
    return (isinstance(kind, str) and kind in TRANSFORMERS_CONFIGS) or (
        kind is None and "d_model" in values
    )


def load_any(name: str | Path, dtype: torch.dtype) -> ReMambaForCausalLM:
    """The model of a ReMamba's directory or name, or of a published Mamba's.

    Raises:
        InputError: there is none, or its files cannot be used.
    """
    if is_published(name):
        return load_published(name, dtype)
    return ReMambaForCausalLM.from_pretrained(name, dtype=dtype)


@torch.no_grad()
def load_published(name: str | Path, dtype: torch.dtype) -> ReMambaForCausalLM:
    """The very model that `convert` would write and from_pretrained load, set to read plainly.

    Query, Key, Value and Theta have their initial values: nothing in them is trained.

    Args:
        name: a directory or a hub name, in state-spaces' or in transformers' layout.
        dtype: of all weights.

    Raises:
        InputError: it is no published Mamba, or its files cannot be used.
    """
    folder = fetch(locate(name))
    config, _ = read_config(folder)
    config.method, config.dtype = "plain", dtype
    weights = Weights(folder)
    shapes = expected_shapes(config)
    drop_tied_head(weights, config)
    check_weights(weights, {name: s for name, s in shapes.items() if not is_new(name)})
    preset = config.compressor_init
    try:
        new = initial_compressor(weights[IN_PROJ], weights[OUT_PROJ], preset)
    except InputError:  # a layer too narrow for the authors' initial values
        new = initial_compressor(weights[IN_PROJ], weights[OUT_PROJ], "tied")
    new |= {name: torch.zeros(shapes[name]) for name in shapes if name.endswith(THETA)}
    with torch.device("meta"):
        model: Any = ReMambaForCausalLM(config)
    state = {name: (new[name] if name in new else weights[name]).to(dtype) for name in shapes}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise InputError(f"{name} gives no values of {', '.join(left[:3])}")
    model.name_or_path = str(name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()
