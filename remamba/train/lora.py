"""Low-rank adapters through PEFT, beside the few tensors that are trained in full."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remamba.checkpoints.convert import check_destination, copy_tokenizer, find_tokenizer, is_new
from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.fields import LARGEST, check_value
from remamba.files import make_directory, new_directory, whole_file, write_whole, writing
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import check_model, locate
from remamba.quantised import check_numbers
from remamba.text import load_tokenizer, settle_end
from remamba.train.config import TrainArgs

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
COMPRESSION_FILE = "compression.json"
"""Beside an adapter: the compression settings that it was trained for."""
ENDS = ("embeddings", "lm_head")
PREFIX = "base_model.model."
DT_BIAS = ".dt_bias"
COMPRESSOR = ("query_proj", "key_proj", "value_proj")
PUBLISHED = {
    "Q_proj": "query_proj", "K_proj": "key_proj", "V_proj": "value_proj", "ret_bias": "adaption",
}  # fmt: skip
"""Modules of the authors' adapter -> ours."""
RENAMED = (
    (re.compile(r"\bbackbone\.([QKV]_proj)\b"), lambda m: f"compressor.{PUBLISHED[m[1]]}"),
    (re.compile(r"\bret_bias\.param$"), lambda m: "adaption.theta"),
)
"""Parameters of the authors' adapter -> ours."""


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts into it."""
    name = name.removeprefix(PREFIX).replace(".modules_to_save.default", "")
    return name.replace(".base_layer", "")


def untie(model: ReMambaForCausalLM) -> None:
    """Give the head a copy of the embeddings, so that each end can have an adapter of its own.

    With one tensor for both, merging would add both adapters to it.
    """
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.backbone.embeddings.weight.detach().clone())
        model.config.tie_word_embeddings = False


def adapter_config(args: TrainArgs, backbone_type: str) -> LoraConfig:
    """PEFT's configuration of a run: Query, Key, Value, Theta and dt_proj are modules to save."""
    from peft import LoraConfig

    in_full = args.train_in_full
    modules: list[str] = []
    if args.method == "remamba" and "compressor" in in_full:
        modules += COMPRESSOR
    if args.method == "remamba" and "theta" in in_full:
        modules.append("adaption")
    if "dt" in in_full and backbone_type != "mamba2":
        modules.append("dt_proj")
    return LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=list(args.lora_targets),
        modules_to_save=modules or None,
    )


def add_adapters(
    model: ReMambaForCausalLM,
    config: LoraConfig,
    *,
    with_dt_bias: bool,
    keep_tied: bool = False,
) -> PeftModel:
    """The model with new adapters; nothing else in it is trained.

    Args:
        keep_tied: leave embeddings and head one tensor, for a merge that adds both adapters to it.
        with_dt_bias: train Mamba-2's dt_bias where it is. A parameter of the mixer is no module
            that PEFT could copy; it is saved beside the adapter's tensors and loaded over the
            base's own, by PEFT too.
    """
    from peft import get_peft_model

    if set(ENDS) & set(config.target_modules or ()) and not keep_tied:
        untie(model)
    config.base_model_name_or_path = model.name_or_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on tied weights, which are apart by now
        # the task type stays open: PEFT's own causal model passes arguments that ours has not
        adapted: Any = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if name.endswith(DT_BIAS):
            parameter.requires_grad_(with_dt_bias)
    return adapted


def hold_frozen_in_bfloat16(adapted: nn.Module) -> None:
    """Half the memory for the matrices that stay as they are; for training under autocast.

    Embeddings, norms and vectors keep their precision, and so does all that is trained.
    """
    for module in adapted.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(torch.bfloat16)
        if hasattr(module, "cast_input_dtype_enabled"):
            layer: Any = module
            layer.cast_input_dtype_enabled = False  # autocast does it, once


# files


def save_adapter(
    adapted: PeftModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a stock PEFT adapter, and the compression that it is for.

    Args:
        state_dict: of the whole model, where it had to be gathered from several processes.
    """
    folder = Path(folder)
    make_directory(folder)
    weights = {
        # copies: tensors of a file must not share memory
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in _adapter_tensors(adapted, state_dict).items()
    }
    with whole_file(folder / WEIGHTS_FILE) as part:
        save_file(weights, part, {"format": "pt"})
    config = copy.copy(adapted.peft_config["default"])
    config.inference_mode = True
    with writing(folder):
        config.save_pretrained(str(folder))
    text = json.dumps(_base_of(adapted).config.reading, indent=2) + "\n"
    write_whole(folder / COMPRESSION_FILE, text)


def _adapter_tensors(
    adapted: PeftModel, state_dict: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state_dict = adapted.state_dict() if state_dict is None else state_dict
    tensors = get_peft_model_state_dict(adapted, state_dict=state_dict, save_embedding_layers=False)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    return tensors | {n: t for n, t in state_dict.items() if n.endswith(DT_BIAS) and n in trained}


def _base_of(adapted: PeftModel) -> ReMambaForCausalLM:
    base: Any = adapted.get_base_model()
    return base


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_FILE).is_file()


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter's configuration and tensors, by our names; the authors' are translated.

    Raises:
        InputError: there is none, or it is not LoRA.
    """
    from peft import LoraConfig, PeftConfig

    folder = Path(folder)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InputError(f"{folder} holds no {file}, so it is no adapter; give its directory")
    try:
        _check_adapter(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # whatever a broken file makes PEFT raise
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} cannot be read as an adapter ({reason})") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"{folder} holds {config.peft_type} weights; only LoRA can be read")
    config.task_type = None
    saved = config.modules_to_save or []
    config.modules_to_save = [PUBLISHED.get(name, name) for name in saved] or None
    return config, dict(_renamed(weights))


def _check_adapter(values: Any) -> None:
    """Raise InputError for settings of LoRA that are of another type, or outside their range."""
    check_value(CONFIG_FILE, values, dict)
    names = list[str] | str | None
    fields: dict[str, tuple[Any, float | None, float | None]] = {
        "r": (int, 1, LARGEST),
        "lora_alpha": (float, 0.0, LARGEST),
        "lora_dropout": (float, 0.0, 1.0),
        **dict.fromkeys(
            ("target_modules", "exclude_modules", "target_parameters"), (names, None, None)
        ),
        "modules_to_save": (list[str] | None, None, None),
        **dict.fromkeys(("rank_pattern", "alpha_pattern"), (dict | None, None, None)),
        **dict.fromkeys(
            ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "inference_mode"),
            (bool, None, None),
        ),
        **dict.fromkeys(("base_model_name_or_path", "task_type"), (str | None, None, None)),
        "peft_type": (str, None, None),
    }
    for name, (kind, low, high) in fields.items():
        if name in values:
            check_value(name, values[name], kind, low, high)
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (values.get(name) or {}).items():
            check_value(f"{name}, {pattern}", value, float, 0.0, LARGEST)


def _renamed(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        # what PEFT saves of the base's two ends beside their adapters: they are not trained
        if plain_name(name) in ("backbone.embeddings.weight", "lm_head.weight"):
            continue
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        yield name, tensor


def load_adapter(
    model: ReMambaForCausalLM,
    folder: str | Path,
    *,
    is_trainable: bool = False,
    keep_tied: bool = False,
) -> PeftModel:
    """The model with a saved adapter, ours or the authors'; the compression is the adapter's.

    Raises:
        InputError: no adapter, or one of another model.
    """
    from peft import set_peft_model_state_dict

    config, weights = read_adapter(folder)
    config.inference_mode = False
    with_dt_bias = any(name.endswith(DT_BIAS) for name in weights)
    adapted = add_adapters(model, config, with_dt_bias=with_dt_bias, keep_tied=keep_tied)
    expected = {name: tensor.shape for name, tensor in _adapter_tensors(adapted).items()}
    for name, tensor in weights.items():
        if name not in expected:
            raise InputError(f"{folder} has a tensor {name} that this model has no place for")
        if tensor.shape != expected[name]:
            raise InputError(
                f"{folder}: {name} is {tuple(tensor.shape)}, this model's is "
                f"{tuple(expected[name])}; give the base that the adapter was trained on"
            )
    if missing := [name for name in expected if name not in weights]:
        raise InputError(f"{folder} lacks {len(missing)} tensors, the first is {missing[0]}")
    set_peft_model_state_dict(adapted, weights)
    if (settings := Path(folder) / COMPRESSION_FILE).is_file():
        try:
            model.config.reading = json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{settings} cannot be used ({error})") from error
    if not is_trainable:
        adapted.requires_grad_(False)
    return adapted.train(is_trainable)


def merged(adapted: PeftModel) -> ReMambaForCausalLM:
    """The plain model that computes the same; the adapted one is used up."""
    tuner: Any = adapted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on tied weights: see `untie` and `sum_tied`
        return tuner.merge_and_unload()


@dataclass(frozen=True)
class Merged:
    """What a merge wrote."""

    path: str
    base: str
    parameters: int
    dtype: str
    tied: bool
    """Whether embeddings and head are one tensor."""


def merge(
    adapter: str | Path,
    destination: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    sum_tied: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Write a plain ReMamba directory: a base with an adapter, ours or the authors', merged in.

    The sums are built in float32. The base's config.json tells the compression, unless the adapter
    has its own.

    Args:
        base: directory or name of the base; None: as the adapter says.
        dtype: of the written weights; None keeps the base's.
        sum_tied: as the authors merged: tied embeddings and head stay one tensor that gets both
            adapters, which is not the model that was trained.

    Raises:
        InputError: adapter, base or destination cannot be used. Nothing is written.
    """
    adapter, target = Path(adapter), Path(destination)
    config, _ = read_adapter(adapter)
    base = base or config.base_model_name_or_path
    if not base:
        raise InputError(f"{adapter / CONFIG_FILE} names no base; give --base DIR")
    source = locate(base)
    for folder in (adapter, Path(source)):
        check_destination(target, folder, overwrite)
    check_numbers(source, check_model(source)[0])
    model = ReMambaForCausalLM.from_pretrained(source, dtype="auto")
    own_dtype: torch.dtype = dtype or model.dtype
    model = merged(load_adapter(model.float(), adapter, keep_tied=sum_tied))
    nn.Module.to(model, own_dtype)
    vocab_size = model.config.vocab_size
    tokenizer = find_tokenizer(adapter, vocab_size, required=False)
    if tokenizer:
        settle_end(model, load_tokenizer(adapter, vocab_size))
    elif Path(source).is_dir():
        tokenizer = find_tokenizer(Path(source), vocab_size, required=False)
    with new_directory(target, overwrite) as partial:
        model.save_pretrained(partial)
        copy_tokenizer(tokenizer, partial)
    return Merged(
        path=str(target),
        base=base,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(own_dtype).removeprefix("torch."),
        tied=model.config.tie_word_embeddings,
    )


# which parameters are trained


def freeze_idle(model: nn.Module, args: TrainArgs, settings: CompressionConfig) -> list[str]:
    """Freeze what cannot get a gradient with these options; returns its names.

    Plain Mamba has no use for Query, Key, Value and Theta; Theta takes part in the selective and
    exact adaptions only; and where the scores enter nothing, only the score loss trains Query and
    Key.
    """
    compresses = args.method == "remamba"
    scores_count = settings.adaption != "none" or args.score_loss > 0
    frozen = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not is_new(plain_name(name)):
            continue
        is_used = compresses
        if plain_name(name).endswith(".theta"):
            is_used = compresses and settings.adaption in ("selective", "exact")
        elif ".query_proj." in name or ".key_proj." in name:
            is_used = compresses and scores_count
        if not is_used:
            parameter.requires_grad_(False)
            frozen.append(plain_name(name))
    return frozen
