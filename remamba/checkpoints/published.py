"""Models by name for reading: a ReMamba's directory, or a published Mamba without conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig

from remamba.bare_model import BareReMamba, BaseReMamba
from remamba.checkpoints.convert import (
    HEAD,
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
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.pretrained import (
    GENERATION_FILE,
    check_model,
    hub_options_for,
    locate,
    stored_tensors,
)
from remamba.sizes import check_weights as check_sizes
from remamba.sizes import without_memory


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


def load_any(name: str | Path, dtype: torch.dtype) -> BaseReMamba:
    """The model of a ReMamba's directory or name, or of a published Mamba's, for reading.

    Quantised weights come as a ReMambaForCausalLM, since transformers loads them; the others as a
    BareReMamba.

    Raises:
        InputError: there is none, or its files cannot be used.
    """
    if is_published(name):
        return load_published(name, dtype)
    place = locate(name)
    values, _ = check_model(place)
    if "quantization_config" in values:
        from remamba.modeling_remamba import ReMambaForCausalLM

        return ReMambaForCausalLM.from_pretrained(name, dtype=dtype)
    return _load_own(str(name), fetch(place), values, dtype)


def _load_own(name: str, folder: Path, values: dict[str, Any], dtype: torch.dtype) -> BareReMamba:
    """The model of a ReMamba's directory, whose config.json has these values."""
    check_sizes(BareReMamba, str(folder), values, {})
    config = ReMambaConfig.from_dict(values)
    config.dtype = dtype
    model = without_memory(BareReMamba, config)
    head = [HEAD] if config.tie_word_embeddings else []
    state = stored_tensors(folder, dtype)
    if not state:
        raise InputError(f"{folder} holds no weights in safetensors; convert or save it again")
    wanted = [key for key in model.state_dict() if key not in head]
    for problem, names in (
        ("missing", [key for key in wanted if key not in state]),
        ("unexpected", [key for key in state if key not in {*wanted, *head}]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{name} has {problem} tensors: {', '.join(sorted(names)[:3])}{more}")
    model.load_state_dict(state, strict=False, assign=True)
    if (folder / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return _ready(model, name)


def _ready(model: BareReMamba, name: str) -> BareReMamba:
    """A model whose weights were put in place of those it was made with."""
    model.tie_weights()
    model.name_or_path = name
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.eval()
    return model


@torch.no_grad()
def load_published(name: str | Path, dtype: torch.dtype) -> BareReMamba:
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
    model = without_memory(BareReMamba, config)
    state = {name: (new[name] if name in new else weights[name]).to(dtype) for name in shapes}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise InputError(f"{name} gives no values of {', '.join(left[:3])}")
    return _ready(model, str(name))
