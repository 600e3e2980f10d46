"""Where a model's files are, and whether they are a ReMamba's, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError

EMBEDDED = "remamba-tiny"
"""The model that comes with the package."""


def locate(name: str | Path) -> str:
    """The directory (or hub name) behind a model's name; "remamba-tiny" is inside the package."""
    if str(name) == EMBEDDED and not Path(name).is_dir():
        folder = Path(__file__).parent / "assets" / EMBEDDED
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{EMBEDDED} is not in this installation ({folder} is missing); install it again"
            )
        return str(folder)
    return str(name)


def check_model(name: str, **hub_options: object) -> None:
    """Raise InputError unless `name` holds a ReMamba whose safetensors files can be opened."""
    folder = Path(name)
    looks_local = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise InputError(
            f"{name} is no directory; give a model directory, a hub name or {EMBEDDED}"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{name} holds no config.json, so it is no model directory")
    try:
        values, _ = PretrainedConfig.get_config_dict(name, **hub_options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"no model can be read from {name!r}: {reason}") from error
    kind = values.get("model_type", "unknown")
    if kind != ReMambaConfig.model_type:
        raise InputError(
            f"{name} holds a {kind!r} model, not a ReMamba; convert it first: "
            f"remamba convert {name} DIRECTORY"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file} is truncated or corrupt ({error}); copy it again") from error
