"""Quantised weights: which there are, and what bitsandbytes and torchao are told before a load.

in_proj, out_proj and an untied head are quantised, which is nearly all of a model. x_proj, dt_proj
and Query, Key and Value are not: they are small, the time step is an exponent, and the scores
choose what is kept.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from remamba.errors import InputError

NEVER = (r".*\.(x_proj|dt_proj)", "compressor")
"""Modules that keep their numbers, as patterns that match from a name's start."""
SKIPPED = {"bitsandbytes": "llm_int8_skip_modules", "torchao": "modules_to_not_convert"}
"""Library -> the field of its configuration that names what is not quantised."""
PROBE = (64, 1024)
"""Sizes of a matrix that every group size and every packing divides."""


def library_of(quantization: Any) -> str:
    """The library that a quantization_config is of, an object's or a dict's."""
    given = quantization if isinstance(quantization, dict) else vars(quantization)
    method = given.get("quant_method", "bitsandbytes" if "load_in_4bit" in given else "unknown")
    return str(getattr(method, "value", method))


def _skip_field(quantization: Any, whose: str) -> str:
    if (library := library_of(quantization)) not in SKIPPED:
        raise InputError(
            f"{whose}: weights quantised by {library} cannot be used; bitsandbytes (4 and 8 bits) "
            "and torchao can"
        )
    return SKIPPED[library]


def _check_saved(name: str, quantization: dict[str, Any]) -> None:
    """Raise InputError where the weights of a directory are not quantised as they are here."""
    skipped = quantization.get(_skip_field(quantization, name)) or []
    if not set(NEVER) <= set(skipped):
        raise InputError(
            f"{name} was quantised in x_proj, dt_proj or the compressor, which must keep their "
            "numbers; load the model that it was, with a quantization_config, and save that"
        )


def check_numbers(name: str, values: dict[str, Any]) -> None:
    """Raise InputError where config.json's values tell of quantised weights."""
    if "quantization_config" in values:
        raise InputError(
            f"{name} holds quantised weights, which can neither be trained nor merged with; give "
            "the model that was quantised"
        )


def prepare(name: str, values: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a load will give quantised weights; what the quantiser must know enters the options.

    Args:
        name, values: of the model, and what its config.json holds.
        options: of from_pretrained; its quantization_config is replaced by a completed copy.

    Raises:
        InputError: the weights are, or would be, quantised in a way that cannot be used.
    """
    if "quantization_config" in values:
        _check_saved(name, values["quantization_config"])
        return True
    if (quantization := options.get("quantization_config")) is None:
        return False
    is_tied = values.get("tie_word_embeddings", True)
    is_tied = getattr(options.get("config"), "tie_word_embeddings", is_tied)
    dtype = options.get("dtype") or values.get("dtype")
    options["quantization_config"] = _completed(
        quantization, is_tied, options.get("device_map"), dtype
    )
    return True


def _completed(quantization: Any, is_tied: bool, device_map: Any, dtype: Any) -> Any:
    """A copy of what the caller wants, which leaves alone what is never quantised.

    Args:
        quantization: transformers' BitsAndBytesConfig or TorchAoConfig, or its dict.
        is_tied: the head is the embeddings, which are not multiplied by; it stays as they are.
        device_map, dtype: of the load.

    Raises:
        InputError: another library, or what this one cannot do here.
    """
    field = _skip_field(quantization, "quantization_config")
    if isinstance(quantization, dict):
        from transformers.quantizers.auto import AutoQuantizationConfig

        quantization = AutoQuantizationConfig.from_dict(quantization)
    wanted: Any = copy.deepcopy(quantization)
    if getattr(wanted, "include_input_output_embeddings", False):
        raise InputError(
            "quantization_config: include_input_output_embeddings=True would quantise the "
            "embeddings; leave it out (a head that is not tied to them is quantised anyway)"
        )
    more = ["lm_head"] if is_tied else []
    setattr(wanted, field, [*(getattr(wanted, field) or []), *NEVER, *more])
    if field == SKIPPED["torchao"]:
        _probe(wanted.get_apply_tensor_subclass(), device_map, dtype)
    return wanted


def _probe(config: Any, device_map: Any, dtype: Any) -> None:
    """Quantise and multiply a small matrix: torchao says what it cannot do on a device then only.

    Inside a load its reason is lost among a page for each weight.
    """
    from torchao.quantization import FqnToConfig, quantize_

    if isinstance(config, FqnToConfig):  # a kind for each name: there is no one to try
        return
    numbers = getattr(torch, str(dtype).removeprefix("torch."), torch.float32)
    place = _device(device_map)
    linear = nn.Linear(PROBE[1], PROBE[0], bias=False, dtype=numbers, device=place)
    try:
        quantize_(linear, config)
        with torch.no_grad():
            linear(torch.ones(1, PROBE[1], dtype=numbers, device=place))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"quantization_config: torchao cannot use {type(config).__name__} with {numbers} on "
            f"{place} ({reason})"
        ) from error


def _device(device_map: Any) -> torch.device:
    """Where a load puts most weights."""
    place = device_map.get("") if isinstance(device_map, dict) else device_map
    if place is None and device_map is None:
        return torch.device("cpu")
    if isinstance(place, int):
        return torch.device("cuda", place)
    if isinstance(place, torch.device) or (place and place.partition(":")[0] in ("cpu", "cuda")):
        return torch.device(place)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle(model: nn.Module) -> None:
    """What a quantised model needs behind its load.

    On CPUs with AVX512-BF16 bitsandbytes packs 4-bit weights anew in the first forward without
    gradients. That rounds their scales to bfloat16, fails unless 32 divides the rows (those of
    Mamba-2's in_proj it does not), and passes no gradient if the model is trained afterwards.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a quantised model consists of, by name, as plain tensors.

    Packed numbers and scales stand apart, and what was not quantised is there as it is.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if hasattr(tensor, "__tensor_flatten__"):
            parts, _ = tensor.__tensor_flatten__()  # type: ignore[operator]
            found |= {f"{name}.{part}": getattr(tensor, part) for part in parts}
        else:
            found[name] = tensor
    return found
