"""The options that name a model and how it reads, shared by the commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from remamba.engine.loading import CPU_PIECE, GPU_PIECE, resolve_device, resolve_dtype
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import CompressionConfig, Reader

COMPRESSION = ("start", "length", "keep_ratio", "num_kept", "placement", "adaption", "selector")
OWN = "(default: the model's own)"
Share = Annotated[float | None, arg(metavar="SHARE", help_behavior_hint=OWN)]


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

    def load(self, name: str | None = None, slots: int = 8) -> Reader:
        """A reader of the model `name` (default: the one given) and its tokenizer.

        Raises:
            InputError: there is no such model, tokenizer or device, or they do not fit together.
        """
        from remamba.engine.reader import Reader

        if self.piece_length is not None and self.piece_length < 1:
            raise InputError(f"--piece-length {self.piece_length} must be at least 1")
        device = resolve_device(self.device, "--device")
        return Reader(
            name or self.model,
            device=device,
            dtype=resolve_dtype(self.dtype, device, "--dtype"),
            piece_length=self.piece_length,
            slots=slots,
        )
