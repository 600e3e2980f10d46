"""Read any published Mamba layout, add ReMamba's new parameters, write a ReMamba directory.

Tensors go through one at a time: safetensors are opened and not loaded, `pytorch_model.bin` is
mapped into memory, and the result is written in shards. A checkpoint is checked whole before the
first byte is written, and its directory appears only when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from remamba.bare_model import BareReMamba
from remamba.checkpoints.layouts import MORE_TEMPLATES, TOKENIZER_FILES, Weights, fetch, read_config
from remamba.configuration_remamba import COMPRESSOR_INITS, CompressionConfig, ReMambaConfig
from remamba.errors import InputError
from remamba.files import check_directory, make_directory, new_directory, write_whole
from remamba.sizes import expected_shapes as model_shapes
from remamba.text import VOCABULARIES, check_vocabulary, has_chat_template_file

SHARD_BYTES = 2 * 10**9
EMBEDDINGS, HEAD = "backbone.embeddings.weight", "lm_head.weight"
THETA = ".adaption.theta"
IN_PROJ, OUT_PROJ = (f"backbone.layers.0.mixer.{name}.weight" for name in ("in_proj", "out_proj"))


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    path: str
    layout: str
    """"state-spaces" or "transformers"."""
    backbone: str
    parameters: int
    new_parameters: int
    """Those of Query, Key, Value and Theta."""
    dtype: str
    shards: int
    tokenizer: bool
    chat_template: bool


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: torch.dtype | None = None,
    compressor_init: str = "released",
    seed: int = 0,
    compression: CompressionConfig | None = None,
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Write `destination`, a ReMamba made of a published Mamba, Mamba-2 or Falcon-Mamba.

    Args:
        source: directory or hub name, in state-spaces' or in transformers' layout.
        dtype: of the written weights; None keeps each tensor's own.
        compressor_init: "released", "paper" or "tied", see `initial_compressor`.
        seed: of the "tied" initial values.
        tokenizer: directory or hub name of the tokenizer; None copies the source's own, if any.
        overwrite: replace an existing ReMamba directory.

    Raises:
        InputError: the source, its tokenizer or the destination cannot be used. Nothing is written.
    """
    target = Path(destination)
    check_directory(target)  # before anything is downloaded
    folder = fetch(source)
    check_destination(target, folder, overwrite)
    config, layout = read_config(folder)
    weights = Weights(folder)
    shapes = expected_shapes(config)
    drop_tied_head(weights, config)
    check_weights(weights, {name: s for name, s in shapes.items() if not is_new(name)})
    vocabulary = fetch(tokenizer, with_weights=False) if tokenizer is not None else folder
    tokenizer_files = find_tokenizer(vocabulary, config.vocab_size, required=tokenizer is not None)

    in_proj = weights[IN_PROJ]
    own_dtype = dtype or in_proj.dtype
    new = initial_compressor(in_proj, weights[OUT_PROJ], compressor_init, seed)
    new |= {name: torch.zeros(shapes[name]) for name in shapes if name.endswith(THETA)}

    config.compression = (compression or CompressionConfig()).to_dict()
    config.compressor_init = compressor_init
    config.dtype = own_dtype
    config.architectures = ["ReMambaForCausalLM"]

    def kind(name: str) -> torch.dtype:
        return own_dtype if name in new else dtype or weights[name].dtype

    def read(name: str) -> Tensor:
        return (new[name] if name in new else weights[name]).to(kind(name))

    sizes = {name: shape.numel() * kind(name).itemsize for name, shape in shapes.items()}
    with new_directory(target, overwrite) as partial:
        config.save_pretrained(partial)
        copy_tokenizer(tokenizer_files, partial)
        shards = write_shards(partial, sizes, read, shard_bytes)
    return Conversion(
        path=str(target),
        layout=layout,
        backbone=config.backbone_type,
        parameters=sum(shape.numel() for shape in shapes.values()),
        new_parameters=sum(shape.numel() for name, shape in shapes.items() if is_new(name)),
        dtype=str(own_dtype).removeprefix("torch."),
        shards=shards,
        tokenizer=bool(tokenizer_files),
        chat_template=bool(tokenizer_files) and has_chat_template_file(vocabulary),
    )


# checking


def is_new(name: str) -> bool:
    """True of the parameters that a published Mamba lacks: Query, Key, Value and Theta."""
    return ".compressor." in f".{name}" or name.endswith(THETA)


def expected_shapes(config: ReMambaConfig) -> dict[str, torch.Size]:
    """Shape of every stored tensor of a ReMamba; a tied head is stored once, as the embeddings."""
    shapes = model_shapes(BareReMamba, config)
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def drop_tied_head(weights: Weights, config: ReMambaConfig) -> None:
    """Drop a tied head stored beside the embeddings, which must be equal to them."""
    if not config.tie_word_embeddings or HEAD not in weights or EMBEDDINGS not in weights:
        return
    head, embeddings = weights[HEAD], weights[EMBEDDINGS]
    alike = (head.shape, head.dtype) == (embeddings.shape, embeddings.dtype)
    same = head.data_ptr() == embeddings.data_ptr()
    if not alike or not (same or torch.equal(head, embeddings)):
        raise InputError(
            f"{weights.file}: {HEAD} differs from the embeddings, but config.json says they are "
            "tied; set tie_word_embeddings (tie_embeddings) to false there"
        )
    weights.drop(HEAD)


def check_weights(weights: Weights, shapes: dict[str, torch.Size]) -> None:
    """Raise InputError unless the tensors are exactly those expected, in floating point."""
    missing = [name for name in shapes if name not in weights]
    unexpected = [name for name in weights if name not in shapes]
    wrong = [
        f"{name} is {weights.shape(name)}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights.shape(name) != tuple(shape)
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong)]
    faults = [f"{_count(names)} {fault}: {_some(names)}" for fault, names in found if names]
    if faults:
        raise InputError(f"{weights.file} does not fit its config.json: {'; '.join(faults)}")
    for name in shapes:
        if not (kind := weights[name].dtype).is_floating_point:
            raise InputError(
                f"{weights.file}: {name} is {kind}; give the checkpoint as published, not quantized"
            )


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'}"


def _some(names: list[str]) -> str:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def find_tokenizer(folder: Path, vocab_size: int, *, required: bool) -> list[Path]:
    """The tokenizer's files in a directory; its tokens must fit the model's vocabulary."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    files += sorted(folder.glob(f"{MORE_TEMPLATES}/*.jinja"))
    if check_vocabulary(folder, vocab_size) is None:
        if required:
            raise InputError(f"{folder} holds no {VOCABULARIES}")
        return []
    return files


def copy_tokenizer(files: Sequence[Path], target: Path) -> None:
    """Copy what `find_tokenizer` found; a second chat template keeps its folder."""
    for file in files:
        place = target / (MORE_TEMPLATES if file.parent.name == MORE_TEMPLATES else "")
        make_directory(place)
        shutil.copyfile(file, place / file.name)


# initial values of the new parameters


def initial_compressor(
    in_proj: Tensor, out_proj: Tensor, preset: str, seed: int = 0
) -> dict[str, Tensor]:
    """Initial Query, Key and Value by parameter name, float32; always copies.

    - "released": Key from in_proj's rows 0..2d, Query from rows 2d..4d, Value from out_proj's
      columns 0..2d, biases zero, as the authors' code does.
    - "paper": all from in_proj, as the paper says; Value from rows 0..2d.
    - "tied", for models trained from scratch: torch's own initialisation, Query a copy of Key (the
      others start with scores near zero, and so with alpha near zero).

    Args:
        in_proj: (at least 4d, d) of layer 0.
        out_proj: (d, e) of layer 0, e at least 2d for "released".
    """
    if preset not in COMPRESSOR_INITS:
        raise InputError(
            f"compressor_init={preset!r} is unknown; choose one of {', '.join(COMPRESSOR_INITS)}"
        )
    d = in_proj.shape[1]
    if preset == "tied":
        return _tied_compressor(d, seed)
    if in_proj.shape[0] < 4 * d:
        raise InputError(
            f"compressor_init={preset!r} needs {4 * d} rows of layer 0's in_proj, which has "
            f"{in_proj.shape[0]}; use compressor_init='tied'"
        )
    if preset == "released" and out_proj.shape[1] < 2 * d:
        raise InputError(
            f"compressor_init={preset!r} needs {2 * d} columns of layer 0's out_proj, which has "
            f"{out_proj.shape[1]}; use compressor_init='tied'"
        )
    rows = in_proj[: 4 * d].split(d)
    weights = {"key_proj": (rows[0], rows[1]), "query_proj": (rows[2], rows[3])}
    weights["value_proj"] = (
        (out_proj[:, :d], out_proj[:, d : 2 * d]) if preset == "released" else (rows[0], rows[1])
    )
    values = {}
    for name, pair in weights.items():
        for layer, weight in zip((0, 2), pair, strict=True):
            values[f"compressor.{name}.{layer}.weight"] = weight.detach().float().clone()
            values[f"compressor.{name}.{layer}.bias"] = torch.zeros(d)
    return values


def _tied_compressor(d: int, seed: int) -> dict[str, Tensor]:
    """nn.Linear's own initialisation of Key and Value; Query is a copy of Key."""
    generator = torch.Generator().manual_seed(seed)
    bound = d**-0.5
    values = {}
    for name in ("key_proj", "value_proj"):
        for layer in (0, 2):
            for kind, shape in (("weight", (d, d)), ("bias", (d,))):
                drawn = torch.rand(shape, generator=generator) * 2 - 1
                values[f"compressor.{name}.{layer}.{kind}"] = drawn * bound
    keys = [name for name in values if ".key_proj." in name]
    return values | {name.replace("key_proj", "query_proj"): values[name].clone() for name in keys}


# writing


def write_shards(
    folder: Path, sizes: dict[str, int], read: Callable[[str], Tensor], shard_bytes: int
) -> int:
    """Write tensors as safetensors of at most `shard_bytes` each; returns how many files.

    Args:
        sizes: bytes of each tensor, by name, in the order they are written.
        read: the tensor of a name; one shard's tensors are held at a time.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        several = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"model{several}.safetensors"
        save_file(
            {name: read(name).contiguous() for name in shard}, folder / file, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        write_whole(folder / "model.safetensors.index.json", text)
    return len(shards)


def check_destination(target: Path, source: Path, overwrite: bool) -> None:
    """Raise InputError unless `target` can be written and is free, or a ReMamba to be replaced."""
    check_directory(target)
    if not target.exists():
        return
    check_directory(target.resolve().parent, str(target))
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{target} is not empty; give another directory, or --overwrite")
    if source.resolve().is_relative_to(target.resolve()):
        raise InputError(f"{target} holds the source {source}; give another directory")
    try:
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        replaceable = config["model_type"] == ReMambaConfig.model_type
    except (OSError, ValueError, KeyError, TypeError):
        replaceable = False
    if not replaceable:
        raise InputError(f"{target} holds something else than a ReMamba; it is not overwritten")
