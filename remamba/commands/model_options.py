"""The options that name a model and how it reads, shared by the commands, and its loading."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from remamba.errors import InputError

if TYPE_CHECKING:
    import torch

    from remamba import CompressionConfig, ReMambaForCausalLM

COMPRESSION = ("start", "length", "keep_ratio", "num_kept", "placement", "adaption", "selector")
CPU_PIECE, GPU_PIECE = 2048, 16384
"""Tokens read at once: pieces that stay near a CPU's caches, and such that fill a GPU."""
OWN = "(default: the model's own)"
Share = Annotated[float | None, arg(metavar="SHARE", help_behavior_hint=OWN)]


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
class ModelOptions:
    """Which model reads, and how it compresses what it reads (letters are the paper's)."""

    model: Annotated[str, arg(metavar="NAME|DIR")] = "remamba-tiny"
    """A model directory, a hub name, or remamba-tiny, which comes with the package."""
    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Its numbers: auto is float32 on a CPU and bfloat16 on a GPU."""
    start: Share = None
    """Where the span to compress starts, as a share of the document [s]."""
    length: Share = None
    """How much of the document the span covers, from above 0 to 1 [p]."""
    keep_ratio: Share = None
    """Share of the span's tokens that are kept [rho]."""
    num_kept: Annotated[int | None, arg(metavar="K", help_behavior_hint="")] = None
    """Number of tokens kept, in place of --keep-ratio."""
    placement: Annotated[
        str | None, arg(metavar="replace|append|before_question", help_behavior_hint=OWN)
    ] = None
    """Where the kept vectors stand when the model reads again."""
    adaption: Annotated[
        str | None, arg(metavar="selective|exact|multiplicative|none", help_behavior_hint=OWN)
    ] = None
    """How their scores enter the second reading."""
    selector: Annotated[
        str | None, arg(metavar="topk|random|fixed|drop|none", help_behavior_hint=OWN)
    ] = None
    """How tokens are chosen; none is plain Mamba."""
    piece_length: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint=f"(default: {CPU_PIECE}, on a GPU {GPU_PIECE})"),
    ] = None
    """Tokens read at once: bounds the memory that a long text takes, changes no result."""

    def changes(self) -> dict[str, Any]:
        """The compression settings given here, by name."""
        given = {name: getattr(self, name) for name in COMPRESSION}
        changes = {name: value for name, value in given.items() if value is not None}
        if "keep_ratio" in changes:
            changes.setdefault("num_kept", None)
        return changes

    def compression(self, config: Any) -> CompressionConfig | None:
        """The model's own settings with what was given here; None is plain Mamba.

        Args:
            config: the model's ReMambaConfig.

        Raises:
            InputError: a value is outside its range.
        """
        settings = config.compression_config.replace(**self.changes())
        return None if settings.selector == "none" else settings

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
