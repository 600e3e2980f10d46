"""Published Mamba checkpoints: where their files are, their configuration, their tensors by name.

Two layouts are known. state-spaces' own (`mamba-*`, `mamba2-*`): a config.json with `d_model` and
`ssm_cfg`, weights in `pytorch_model.bin`. transformers' (`*-hf`, Codestral-Mamba, Falcon-Mamba):
a config.json with `model_type`, weights in safetensors.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file

from remamba.configuration_remamba import ReMambaConfig, check_common
from remamba.errors import InputError
from remamba.fields import shown
from remamba.pretrained import hub_options_for, shard_names

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer's chat templates beside its usual one."""
TRANSFORMERS_CONFIGS = {
    "mamba": "MambaConfig",
    "mamba2": "Mamba2Config",
    "falcon_mamba": "FalconMambaConfig",
}
"""model_type -> transformers' class of its configuration."""

# configuration


def read_config(folder: Path) -> tuple[ReMambaConfig, str]:
    """The configuration in `folder` as ours, and its layout: "state-spaces" or "transformers"."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no config.json, so it is no checkpoint")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no JSON object")
    kind = values.get("model_type")
    if kind is None and {"d_model", "n_layer", "vocab_size"} <= values.keys():
        layout, convert = "state-spaces", _from_state_spaces
    elif isinstance(kind, str) and kind in TRANSFORMERS_CONFIGS:
        # transformers spells infinity its own way in JSON, and reads it back
        values, _ = PretrainedConfig.get_config_dict(folder)
        layout, convert = "transformers", _from_transformers
    elif kind == ReMambaConfig.model_type:
        raise InputError(f"{folder} is a ReMamba already; give a published Mamba checkpoint")
    else:
        what = "names no model_type" if kind is None else f"is of a {shown(kind)} model"
        raise InputError(
            f"{file} {what}; known are {', '.join(TRANSFORMERS_CONFIGS)} and state-spaces' layout"
        )
    try:
        check_common(values)
        config = convert(values)
    except Exception as error:  # transformers' own classes raise many kinds
        raise InputError(f"{file}: {' '.join(str(error).split())[:300]}") from error
    return config, layout


def _from_transformers(values: dict[str, Any]) -> ReMambaConfig:
    kind = values["model_type"]
    theirs: Any = getattr(transformers, TRANSFORMERS_CONFIGS[kind]).from_dict(values)
    if theirs.hidden_act not in ("silu", "swish"):
        raise InputError(f"hidden_act={theirs.hidden_act!r} is not supported; only silu is")
    shared = (
        "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand",
        "use_bias", "use_conv_bias", "layer_norm_epsilon", "residual_in_fp32", "initializer_range",
        "time_step_min", "time_step_max", "time_step_floor", "tie_word_embeddings",
        "pad_token_id", "bos_token_id", "eos_token_id", "time_step_rank",
    )  # fmt: skip
    fields = {name: getattr(theirs, name) for name in shared}
    if kind == "mamba2":
        names = ("n_groups", "head_dim", "num_heads", "time_step_limit")
        fields |= {name: getattr(theirs, name) for name in names}
    else:
        fields["intermediate_size"] = theirs.intermediate_size
    if kind == "falcon_mamba":
        fields["mixer_rms_eps"] = theirs.mixer_rms_eps
    return ReMambaConfig(backbone_type=kind, **fields)


SSM_FIELDS = {
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init_floor": "time_step_floor",
    "dt_limit": "time_step_limit",
    "conv_bias": "use_conv_bias",
    "bias": "use_bias",
    "headdim": "head_dim",
    "ngroups": "n_groups",
}
"""state-spaces' names of what shapes or drives a layer -> ours."""
SSM_ONLY = {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None}
"""What ReMamba's Mamba-2 layer is built for; another value is another architecture."""
SSM_IGNORED = {
    "layer", "chunk_size", "use_fast_path", "use_mem_eff_path", "dt_init", "dt_scale", "conv_init",
    "A_init_range", "layer_idx",
}  # fmt: skip
"""How a layer is initialised or run; a trained checkpoint does not depend on it."""


def _from_state_spaces(values: dict[str, Any]) -> ReMambaConfig:
    ssm = values.get("ssm_cfg") or {}
    layer = ssm.get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise InputError(f"ssm_cfg.layer={layer!r} is unknown; known are Mamba1 and Mamba2")
    if not values.get("rms_norm", True):
        raise InputError("rms_norm=false (LayerNorm) is not supported")
    for name in ("attn_layer_idx", "d_intermediate"):
        if values.get(name):
            raise InputError(f"{name}={values[name]} is a hybrid model; only pure Mambas are read")
    for name, value in ssm.items():
        if name not in SSM_FIELDS and name not in SSM_ONLY and name not in SSM_IGNORED:
            raise InputError(f"ssm_cfg.{name} is unknown")
        if name in SSM_ONLY and value != SSM_ONLY[name]:
            raise InputError(f"ssm_cfg.{name}={value} is not supported; only {SSM_ONLY[name]} is")
    fields = {ours: ssm[name] for name, ours in SSM_FIELDS.items() if name in ssm}
    if layer == "Mamba2":
        fields.setdefault("state_size", 128)
    vocab_size, multiple = values["vocab_size"], values.get("pad_vocab_size_multiple") or 1
    return ReMambaConfig(
        backbone_type="mamba2" if layer == "Mamba2" else "mamba",
        vocab_size=-(-vocab_size // multiple) * multiple,
        hidden_size=values["d_model"],
        num_hidden_layers=values["n_layer"],
        residual_in_fp32=values.get("residual_in_fp32", True),
        tie_word_embeddings=values.get("tie_embeddings", True),
        **fields,
    )


# where the files are


def fetch(name: str | Path, *, with_weights: bool = True) -> Path:
    """The directory behind a directory's or a hub repository's name.

    Of a hub repository come the configuration, the tokenizer, and one form of the weights.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    if folder.exists():
        raise InputError(f"{text} is a file; give the checkpoint's directory or a hub name")
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"{text} does not exist; give the checkpoint's directory or a hub name")
    more = hub_options_for(text)

    def hub_file(file: str, required: bool = False) -> str | None:
        return cached_file(text, file, _raise_exceptions_for_missing_entries=required, **more)

    try:
        found = [hub_file("config.json", required=with_weights)]
        found += [hub_file(file) for file in TOKENIZER_FILES]
        for file in WEIGHT_FILES if with_weights else ():
            if weights := hub_file(file):
                found.append(weights)
                if file.endswith(".index.json"):
                    found += [hub_file(shard) for shard in shard_names(Path(weights))]
                break
    except (OSError, ValueError) as error:
        raise InputError(
            f"{text} is no directory here, and no such repository can be reached on the hub "
            f"({str(error).splitlines()[0]}); give a directory, or download it first"
        ) from error
    places = [Path(file).parent for file in found if file]
    if not places:
        raise InputError(
            f"{text} is no directory here, and no tokenizer of that name can be reached on the "
            "hub; give a directory, or download it first"
        )
    return places[0]


# tensors


class Weights:
    """The tensors of a checkpoint under our names, read only when asked for."""

    def __init__(self, folder: Path):
        self.file = next((folder / f for f in WEIGHT_FILES if (folder / f).is_file()), folder)
        if self.file == folder:
            raise InputError(f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)}")
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        shards = [self.file]
        if self.file.name.endswith(".index.json"):
            shards = [folder / shard for shard in shard_names(self.file)]
        for shard in shards:
            if not shard.is_file():
                raise InputError(f"{shard} is missing; {self.file.name} names it")
            (self._open_bin if ".bin" in shard.name else self._open_safetensors)(shard)

    def _add(self, name: str, shape: Any, read: Callable[[], Tensor]) -> None:
        name = our_name(name)
        if name in self._readers:
            raise InputError(f"{self.file} holds {name} twice")
        self._readers[name] = read
        self._shapes[name] = tuple(shape)

    def _open_safetensors(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                self._add(
                    name,
                    file.get_slice(name).get_shape(),
                    lambda name=name: file.get_tensor(name),  # type: ignore[misc]
                )
        except SafetensorError as error:
            raise InputError(f"{path} is truncated or corrupt ({error}); copy it again") from error

    def _open_bin(self, path: Path) -> None:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path} is corrupt, or no file of tensors in torch's zip format ({reason})"
            ) from error
        if not isinstance(tensors, dict):
            raise InputError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise InputError(f"{path} holds a {type(tensor).__name__} named {name!r}")
            self._add(name, tensor.shape, lambda tensor=tensor: tensor)  # type: ignore[misc]

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def drop(self, name: str) -> None:
        del self._readers[name], self._shapes[name]


def our_name(name: str) -> str:
    """transformers' name of a parameter, for one in any published layout."""
    if not name.startswith(("backbone.", "lm_head.")):
        name = f"backbone.{name}"
    return name.replace("backbone.embedding.", "backbone.embeddings.")
