"""Where a model's files are, and whether they are a ReMamba's, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

from remamba import plugins
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.execution.watch import Watch
from remamba.fields import LARGEST, check_value
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
"""Seconds that the first contact with the hub has."""
REMEMBERED = 10.0
"""Seconds for which the outcome of a first contact is taken for the next one, of the same load."""
_contacts: dict[str, tuple[float, bool]] = {}


def is_hub_away() -> bool:
    """Whether no connection to the hub can be made within PATIENCE, or it fails at once.

    The hub's own client tries again for half a minute, and where a network drops packets it waits
    for minutes. A hub that takes a connection and is slow to answer is not away.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:  # then the hub's client asks nobody
        return False
    place = constants.ENDPOINT
    when, is_away = _contacts.get(place, (-REMEMBERED, False))
    if time.monotonic() - when >= REMEMBERED:
        is_away = _is_away(place)
        _contacts[place] = time.monotonic(), is_away
    return is_away


def _is_away(place: str) -> bool:
    """Ask a server for its first page; names are looked up in the same time."""
    from huggingface_hub import get_session

    met: list[bool] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            socket.create_connection(_next_on_the_way(place), timeout=PATIENCE).close()
            met.append(True)
            get_session().head(place, timeout=PATIENCE)
        except Exception as error:
            failed.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    kinds = [type(error).__name__ for error in failed]
    return not met or any("Connect" in kind and "Timeout" not in kind for kind in kinds)


def _next_on_the_way(place: str) -> tuple[str, int]:
    """Host and port that a connection to a server is made to: its own, or its proxy's."""
    target = urlsplit(place)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


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
        if not isinstance(values, dict):
            raise ValueError("its config.json holds no settings by name")
    except Exception as error:  # whatever a config.json makes transformers raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if found:
            reason = "the hub cannot be reached, and there is no such model in the cache"
        raise InputError(
            f"no model can be read from {name!r} ({reason}); give a model directory or "
            f"{_embedded_words()}"
        ) from error
    check_generation(folder / GENERATION_FILE)
    kind = values.get("model_type", "unknown")
    if kind != ReMambaConfig.model_type:
        raise InputError(
            f"{name} holds a {kind!r} model, not a ReMamba; convert it first: "
            f"remamba convert {name} DIRECTORY"
        )
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file) as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        if (other := sorted(kinds - FLOATS)) and "quantization_config" not in values:
            raise InputError(
                f"{file} holds {other[0]} tensors; weights must be {', '.join(sorted(FLOATS))}"
            )
    return values, found


GENERATION_FILE = "generation_config.json"
GENERATION_FIELDS: dict[str, Any] = {
    "eos_token_id": int | list[int] | None,
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "max_length", "max_new_tokens", "min_length", "top_k",
         "min_new_tokens", "num_beams", "num_return_sequences", "no_repeat_ngram_size"),
        int | None,
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty"),
        float | None,
    ),
    **dict.fromkeys(("do_sample", "use_cache"), bool | None),
}  # fmt: skip
"""Settings of a generation_config.json that generate or the engine goes by."""


def check_generation(file: Path) -> None:
    """Raise InputError for a generation_config.json that cannot be used; there need not be one."""
    if not file.is_file():
        return
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        check_value("its content", values, dict)
        for name, kind in GENERATION_FIELDS.items():
            check_value(name, values.get(name), kind)
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            ids = values.get(name)
            for token_id in ids if isinstance(ids, list) else [ids]:
                check_value(name, token_id, int | None, 0, LARGEST)
        GenerationConfig.from_dict(values)
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{file} cannot be used ({reason}); correct it or delete it") from error


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of the usual names in a model directory; none where there are others."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        files = [folder / name for name in shard_names(folder / INDEX)]
    return [file for file in files if file.is_file()]


def stored_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Each tensor of a model directory by its name, floating-point ones in a dtype.

    None where the weights lie in no safetensors of the usual name.

    Raises:
        InputError: the index of the files cannot be used, or a file is corrupt.
    """
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                tensor = tensors.get_tensor(name)
                found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each floating-point tensor of a model directory, from the headers of its files.

    None where the weights lie in no safetensors of the usual name.

    Raises:
        InputError: the index of the files cannot be used, or a file is corrupt.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(folder):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                tensor = tensors.get_slice(name)
                if tensor.get_dtype() in FLOATS:
                    found[name] = tuple(tensor.get_shape())
    return found


def shard_names(index: Path) -> list[str]:
    """The files that an index of weights names, which lie beside it.

    Raises:
        InputError: it is no such index.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if all(name and Path(name).name == name for name in names):
            return names
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is no index of weights: it has no weight_map") from error
    raise InputError(f"{index} is no index of weights: its weight_map names what lies elsewhere")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        InputError: it cannot be read, or is truncated or corrupt.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is truncated or corrupt ({error}); copy it again") from error


@torch.no_grad()
def fingerprint(model: Any) -> str:
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


def _sample(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """About SAMPLES values of a parameter, evenly spread, bfloat16 on the host."""
    if tensor.is_meta:  # accelerate keeps it elsewhere, and brings it for its module's call
        from accelerate.utils import align_module_device

        place, _, leaf = name.rpartition(".")
        owner = model.get_submodule(place)
        with align_module_device(owner, torch.device("cpu")):
            return _sample(model, name, getattr(owner, leaf))
    return tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)].bfloat16().cpu()


_known: WeakKeyDictionary[nn.Module, tuple[Watch, str]] = WeakKeyDictionary()


def known_fingerprint(model: nn.Module) -> str:
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
