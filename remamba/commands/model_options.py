"""The options that name a model and how it reads, shared by the commands, and its loading."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from remamba.commands.derived import changes_of, given
from remamba.compression_config import (
    ADAPTIONS,
    IMPORTANCES,
    PLACEMENTS,
    SELECTORS,
    VALUES,
    CompressionConfig,
)
from remamba.errors import InputError
from remamba.methods.base import METHODS, Method, method_of, own_method

if TYPE_CHECKING:
    import torch

    from remamba import ReMambaForCausalLM

CPU_PIECE, GPU_PIECE = 2048, 16384
"""Tokens read at once: pieces that stay near a CPU's caches, and such that fill a GPU."""
OWN = "(default: the model's own)"
METAVARS = {
    "start": "SHARE",
    "length": "SHARE",
    "keep_ratio": "SHARE",
    "num_kept": "K",
    "selector": "|".join(SELECTORS),
    "window": "N",
    "placement": "|".join(PLACEMENTS),
    "adaption": "|".join(ADAPTIONS),
    "value": "|".join(VALUES),
    "importance": "|".join(IMPORTANCES),
}


class LoadedModel(NamedTuple):
    """A model that is ready to read."""

    name: str
    model: ReMambaForCausalLM
    tokenizer: Any
    seconds: float
    """Spent on loading."""
    piece_length: int
    """How many tokens it reads at once."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Annotated[str, arg(metavar="NAME|DIR")] = "remamba-tiny"
    """A model directory, a hub name, or remamba-tiny, which comes with the package."""
    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Its numbers: auto is float32 on a CPU and bfloat16 on a GPU."""
    method: Annotated[str | None, arg(metavar="|".join(METHODS), help_behavior_hint=OWN)] = None
    """The way of reading; last+remamba shortens the document first. The settings of remamba are
    the options from --start to --importance."""
    method_tokens: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many tokens of the document the methods last and middle leave."""
    piece_length: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint=f"(default: {CPU_PIECE}, on a GPU {GPU_PIECE})"),
    ] = None
    """Tokens read at once: bounds the memory that a long text takes, changes no result."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(changes_of(CompressionConfig, _Options, METAVARS, OWN)):  # type: ignore[misc]
    """Which model reads, and how it reads (letters in brackets are the paper's)."""

    def changes(self) -> dict[str, Any]:
        """The settings of `remamba` that are given here, by name."""
        return given(self, CompressionConfig)

    def chosen(self, config: Any) -> Method:
        """The way of reading: the model's own with what is given here.

        Args:
            config: the model's ReMambaConfig.

        Raises:
            InputError: there is no such method, or an option has no effect with it.
        """
        own, changes = own_method(config), self.changes()
        settings = config.compression_config.replace(**changes)
        method = own if self.method is None else method_of(self.method, settings)
        if self.method_tokens is not None:
            if "tokens" not in vars(method):
                raise InputError(
                    f"--method-tokens {self.method_tokens} has no effect with the method "
                    f"{method.name}; leave it out"
                )
            method = _replaced(method, tokens=self.method_tokens)
        if not changes:
            return method
        return _with_settings(method, settings, next(iter(changes)))

    def load(self, name: str | None = None) -> LoadedModel:
        """The model `name` (default: the one given) and its tokenizer.

        Raises:
            InputError: there is no such model, tokenizer or device, or they do not fit together.
        """
        from remamba.modeling_remamba import ReMambaForCausalLM
        from remamba.pretrained import quiet_transformers
        from remamba.text import load_tokenizer

        if self.piece_length is not None and self.piece_length < 1:
            raise InputError(f"--piece-length {self.piece_length} must be at least 1")
        begun = time.perf_counter()
        name = name or self.model
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype, device)
        with quiet_transformers():
            model = ReMambaForCausalLM.from_pretrained(name, dtype=dtype)
            tokenizer = load_tokenizer(name, model.config.vocab_size)
        model = model.to(device).eval()  # type: ignore[arg-type]
        piece_length = self.piece_length or (GPU_PIECE if device.type == "cuda" else CPU_PIECE)
        return LoadedModel(name, model, tokenizer, time.perf_counter() - begun, piece_length)


def _replaced(method: Method, **changes: Any) -> Method:
    return dataclasses.replace(method, **changes)


def _with_settings(method: Method, settings: CompressionConfig, given: str) -> Method:
    """The method with these settings of `remamba` in it.

    Raises:
        InputError: none of them has an effect with it; `given` is the first of those given.
    """
    known = {field.name for field in dataclasses.fields(method)}
    if method.name == "remamba":
        return _replaced(method, compression=settings)
    if method.name == "drop" and given in known:
        return _replaced(method, start=settings.start, length=settings.length)
    if "reader" in known and (reader := vars(method)["reader"]).name != "plain":
        return _replaced(method, reader=_with_settings(reader, settings, given))
    flag = given.replace("_", "-")
    raise InputError(
        f"--{flag} has no effect with the method {method.name}; leave it out, or give "
        "--method remamba"
    )


def resolve_device(name: str) -> torch.device:
    """The device meant by --device.

    Raises:
        InputError: it is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--device {name} is not on this machine ({reason}); use --device cpu, or auto"
        ) from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype meant by --dtype on a device.

    Raises:
        InputError: the device cannot compute in it.
    """
    import torch

    on_gpu = device.type == "cuda"
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype = getattr(torch, name)
    reason = "the GPU has no such arithmetic" if on_gpu and not has_bfloat16 else ""
    if dtype is not torch.bfloat16 or not reason:
        try:
            ones = torch.ones(2, 2, dtype=dtype, device=device)
            torch.nn.functional.silu(torch.nn.functional.linear(ones, ones))
            return dtype
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
    raise InputError(
        f"--dtype {name} cannot run on {device} of this machine ({reason}); use --dtype float32"
    )
