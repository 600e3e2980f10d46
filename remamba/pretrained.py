"""Where a model's files are, and whether they are a ReMamba's, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from remamba import plugins
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.execution.watch import Watch
from remamba.quantised import stored

EMBEDDED = "remamba-tiny"
"""The model that commands take where none is named; it comes with the package."""
ASSETS = Path(__file__).parent / "assets"
FINGERPRINTED = (
    "backbone_type", "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel",
    "intermediate_size", "time_step_rank", "n_groups", "head_dim", "num_heads", "use_bias",
    "use_conv_bias", "layer_norm_epsilon", "mixer_rms_eps", "residual_in_fp32", "time_step_limit",
)  # fmt: skip
"""The settings that shape a model's states. How it compresses is told by each memory itself."""
FLOATS = {"F16", "BF16", "F32", "F64"}
"""What weights may be stored as."""
SAMPLES = 1024
"""How many values of each tensor enter a fingerprint."""


def embedded_models() -> dict[str, Path]:
    """The models that come with the package, and with others that add some: name -> folder."""
    places = (ASSETS, *plugins.found("models"))
    folders = [file.parent for place in places for file in place.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(folders, key=lambda folder: folder.name)}


def locate(name: str | Path) -> str:
    """The directory (or hub name) behind a model's name; embedded ones are inside the package.

    Raises:
        InputError: remamba-tiny is asked for and not in this installation.
    """
    name = str(name)
    if Path(name).is_dir():
        return name
    if name in (models := embedded_models()):
        return str(models[name])
    if name == EMBEDDED:
        raise InputError(
            f"{EMBEDDED} is not in this installation ({ASSETS / EMBEDDED} is missing); install it "
            "again"
        )
    return name


def is_missing_directory(name: str) -> bool:
    """Whether a name is meant as a place on this machine, and no directory is there."""
    folder = Path(name)
    is_place = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    return is_place and not folder.is_dir()


def _embedded_words() -> str:
    return " or ".join(embedded_models()) or EMBEDDED


HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip
"""Options of `from_pretrained` that say where a model's files are."""
PATIENCE = 1.5
"""Seconds that the hub has for failing at the first try."""


def is_hub_away() -> bool:
    """Whether no connection to the hub can be made at all: it fails within PATIENCE.

    The hub's own client tries again for half a minute. A hub that is slow is not away.
    """
    from huggingface_hub import constants, get_session

    failed: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:
            failed.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    kinds = [type(error).__name__ for error in failed]
    return any("Connect" in kind and "Timeout" not in kind for kind in kinds)


def hub_options_for(place: str, **given: Any) -> dict[str, Any]:
    """`local_files_only=True` for a hub name where there is no network; else nothing.

    Args:
        given: of HUB_OPTIONS, as the caller has them.
    """
    if Path(place).is_dir() or given.get("local_files_only") or not is_hub_away():
        return {}
    return {"local_files_only": True}


def check_model(name: str, **hub_options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Raise InputError unless `name` holds a ReMamba whose safetensors files can be opened.

    Args:
        hub_options: of HUB_OPTIONS, as given to `from_pretrained`.

    Returns:
        The values of its config.json; and more such options: `local_files_only=True` for a hub
        name where there is no network.
    """
    place = Path(name)
    if is_missing_directory(name):
        raise InputError(
            f"{name} is no directory; give a model directory, a hub name or {_embedded_words()}"
        )
    if not place.is_dir() and "/" not in name:
        raise InputError(
            f"there is no model {name!r}; give a directory, a hub name OWNER/NAME or "
            f"{_embedded_words()}"
        )
    found = hub_options_for(name, **hub_options)
    folder = place / (hub_options.get("subfolder") or "")
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{name} holds an adapter, not a whole model; merge it first: "
            f"remamba merge {name} DIRECTORY"
        )
    if place.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json, so it is no model directory")
    try:
        values, _ = PretrainedConfig.get_config_dict(name, **hub_options, **found)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if found:
            reason = "the hub cannot be reached, and there is no such model in the cache"
        raise InputError(
            f"no model can be read from {name!r} ({reason}); give a model directory or "
            f"{_embedded_words()}"
        ) from error
    kind = values.get("model_type", "unknown")
    if kind != ReMambaConfig.model_type:
        raise InputError(
            f"{name} holds a {kind!r} model, not a ReMamba; convert it first: "
            f"remamba convert {name} DIRECTORY"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{file} is truncated or corrupt ({error}); copy it again") from error
        if (other := sorted(kinds - FLOATS)) and "quantization_config" not in values:
            raise InputError(
                f"{file} holds {other[0]} tensors; weights must be {', '.join(sorted(FLOATS))}"
            )
    return values, found


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """What binds a memory to the model that wrote it: 16 hex digits.

    A hash of the configuration, of each tensor's name and shape, and of a strided sample of its
    values. The values are rounded to bfloat16 first, so that a model loaded in bfloat16 and in
    float32 is the same model, on any device. A quantised model is another than the one it was.
    """
    config = {name: getattr(model.config, name, None) for name in FINGERPRINTED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    samples = []
    is_quantised = getattr(model, "is_quantized", False)
    tensors = stored(model) if is_quantised else dict(model.named_parameters())
    if model.config.tie_word_embeddings:  # accelerate parts the two where it takes weights away
        tensors.pop("lm_head.weight", None)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        samples.append(_sample(model, name, tensor))
    digest.update(torch.cat(samples).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """About SAMPLES values of a parameter, evenly spread, bfloat16 on the host."""
    if tensor.is_meta:  # accelerate keeps it elsewhere, and brings it for its module's call
        from accelerate.utils import align_module_device

        place, _, leaf = name.rpartition(".")
        owner = model.get_submodule(place)
        with align_module_device(owner, torch.device("cpu")):
            return _sample(model, name, getattr(owner, leaf))
    return tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)].bfloat16().cpu()


_known: WeakKeyDictionary[PreTrainedModel, tuple[Watch, str]] = WeakKeyDictionary()


def known_fingerprint(model: PreTrainedModel) -> str:
    """`fingerprint(model)`, computed again only when a weight has changed."""
    known = _known.get(model)
    if known is None or not known[0].is_current():
        known = _known[model] = (Watch(model), fingerprint(model))
    return known[1]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice for programmers among a command's own lines."""
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
