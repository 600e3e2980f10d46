"""ReMambaConfig (`model_type = "remamba"`) and CompressionConfig: every option of the method."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from remamba.errors import InputError

SELECTORS = ("topk", "random", "fixed", "drop", "none")
PLACEMENTS = ("replace", "append", "before_question")
ADAPTIONS = ("selective", "exact", "multiplicative", "none")
VALUES = ("hidden", "residual")
IMPORTANCES = ("relu", "relative")
SCORE_GRADIENTS = ("scaled", "true")
BACKBONES = ("mamba", "mamba2", "falcon_mamba")
COMPRESSOR_INITS = ("released", "paper", "tied")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class CompressionConfig:
    """How a prompt is compressed between the two stages; paper symbols in brackets.

    Raises:
        InputError: a value is outside its range, or start + length is above 1, so that the span
            would swallow the last token.
    """

    start: float = 0.0
    """Where the span starts, as a share of the prompt (or of the document) [s]."""
    length: float = 0.18
    """How much of the prompt (or of the document) the span covers [p]."""
    keep_ratio: float = 0.009
    """Share of the span's positions that are kept [rho]."""
    num_kept: int | None = None
    """Number of positions kept, in place of `keep_ratio` [K]."""
    selector: str = "topk"
    """topk (Eq. 5) | random | fixed | drop (the span is cut away) | none (plain Mamba)."""
    window: int = 1
    """With topk a position counts with the best score of itself and the window - 1 positions after
    it, so that the token found brings those before it: words of several tokens stay whole."""
    placement: str = "replace"
    """Where the kept vectors stand: replace (the paper) | append | before_question."""
    adaption: str = "selective"
    """selective (Eq. 8, as released) | exact (alpha times Delta itself) | multiplicative | none."""
    value: str = "hidden"
    """What a kept vector is: hidden (Value of the state, Eq. 6) | residual (that plus the token's
    own embedding, so that a token is read again even where Value never met it)."""
    importance: str = "relu"
    """alpha of a kept vector: relu (of its score, Eq. 8) | relative (exp(16 (score - best kept
    score)): 1 for the best, near 0 for all that score clearly less)."""
    score_gradient: str = "scaled"
    """Gradient into the scores: scaled (times alpha, as the paper) | true."""
    min_prompt_length: int = 0
    """Prompts (or documents) shorter than this are read by plain Mamba."""

    def __post_init__(self) -> None:
        for name in ("start", "length", "keep_ratio", "num_kept", "window", "min_prompt_length"):
            value = getattr(self, name)
            kind = int if name in ("num_kept", "window", "min_prompt_length") else (int, float)
            if not isinstance(value, kind) and not (name == "num_kept" and value is None):
                raise InputError(f"{name} = {value!r} must be a number")
        if not 0.0 <= self.start < 1.0:
            raise InputError(f"start (s) = {self.start} is outside [0, 1)")
        if not 0.0 < self.length <= 1.0:
            raise InputError(f"length (p) = {self.length} is outside (0, 1]")
        if not 0.0 < self.keep_ratio <= 1.0:
            raise InputError(f"keep_ratio (rho) = {self.keep_ratio} is outside (0, 1]")
        if self.start + self.length > 1.0 + 1e-9:
            raise InputError(
                f"start + length (s + p) = {self.start + self.length:g} is above 1: "
                "the span would swallow the last token; lower one of them"
            )
        if self.num_kept is not None and self.num_kept < 1:
            raise InputError(f"num_kept (K) = {self.num_kept} must be at least 1")
        if self.window < 1:
            raise InputError(f"window = {self.window} must be at least 1")
        if self.min_prompt_length < 0:
            raise InputError(f"min_prompt_length = {self.min_prompt_length} must not be negative")
        _one_of("selector", self.selector, SELECTORS)
        _one_of("placement", self.placement, PLACEMENTS)
        _one_of("adaption", self.adaption, ADAPTIONS)
        _one_of("value", self.value, VALUES)
        _one_of("importance", self.importance, IMPORTANCES)
        _one_of("score_gradient", self.score_gradient, SCORE_GRADIENTS)

    @property
    def covers_document(self) -> bool:
        """True when stage 2 needs the document's states alone, so that a memory can serve it."""
        whole = self.start == 0.0 and self.length == 1.0 and self.placement == "replace"
        return whole or self.placement == "before_question"

    @property
    def lengths(self) -> float | tuple[float, ...]:
        """p of all rows, or of each."""
        return self.length

    @property
    def keep_ratios(self) -> float | tuple[float, ...]:
        """rho of all rows, or of each."""
        return self.keep_ratio

    def replace(self, **changes: Any) -> CompressionConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompressionConfig:
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(
                f"unknown compression setting {unknown[0]!r}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)


@dataclass(frozen=True)
class RowCompression(CompressionConfig):
    """Compression with p and rho of its own for each row of a batch, as training draws them.

    Where documents stand apart, a row is a document. `length` and `keep_ratio` are the means. No
    model is saved with it.
    """

    drawn_lengths: tuple[float, ...] = ()
    """p of each row."""
    drawn_keep_ratios: tuple[float, ...] = ()
    """rho of each row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for length, keep_ratio in zip(self.drawn_lengths, self.drawn_keep_ratios, strict=True):
            CompressionConfig(start=self.start, length=length, keep_ratio=keep_ratio)

    @property
    def lengths(self) -> float | tuple[float, ...]:
        return self.drawn_lengths

    @property
    def keep_ratios(self) -> float | tuple[float, ...]:
        return self.drawn_keep_ratios


class ReMambaConfig(PretrainedConfig):
    """Configuration of a ReMamba: a Mamba, Mamba-2 or Falcon-Mamba backbone plus the compression.

    Names are those of transformers' MambaConfig and Mamba2Config; `backbone_type` tells which
    fields count. `compression` is a dict of CompressionConfig's fields;
    `question_template` is how the command line writes a question behind a document.

    Raises:
        InputError: the sizes do not fit one another, or an option is unknown.
    """

    model_type = "remamba"
    # Trainer.predict and compute_metrics get the logits alone
    keys_to_ignore_at_inference = [
        "labels", "correct", "score_loss", "stage1_loss", "stage1_correct", "document_loss",
        "cache_params", "kept",
    ]  # fmt: skip

    def __init__(
        self,
        backbone_type: str = "mamba",
        vocab_size: int = 50280,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        intermediate_size: int | None = None,
        time_step_rank: int | str = "auto",
        n_groups: int = 1,
        head_dim: int = 64,
        num_heads: int | None = None,
        chunk_size: int = 64,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        layer_norm_epsilon: float = 1e-5,
        mixer_rms_eps: float = 1e-6,
        residual_in_fp32: bool = True,
        initializer_range: float = 0.1,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        time_step_limit: tuple[float, float] | list[float] = (0.0, math.inf),
        compression: dict[str, Any] | CompressionConfig | None = None,
        compressor_init: str = "released",
        question_template: str = "\n\nQuestion: {question}\nAnswer:",
        tie_word_embeddings: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        _one_of("backbone_type", backbone_type, BACKBONES)
        sizes = {
            "vocab_size": vocab_size, "hidden_size": hidden_size, "state_size": state_size,
            "num_hidden_layers": num_hidden_layers, "conv_kernel": conv_kernel,
            "n_groups": n_groups, "head_dim": head_dim, "chunk_size": chunk_size,
        }  # fmt: skip
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} = {value!r} must be a whole number of at least 1")
        _one_of("compressor_init", compressor_init, COMPRESSOR_INITS)
        self.backbone_type = backbone_type
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.state_size = state_size
        self.conv_kernel = conv_kernel
        self.expand = expand
        self.intermediate_size = intermediate_size or int(expand * hidden_size)
        self.time_step_rank = (
            math.ceil(hidden_size / 16) if time_step_rank == "auto" else int(time_step_rank)
        )
        self.n_groups = n_groups
        self.head_dim = head_dim
        self.num_heads = num_heads or self.intermediate_size // head_dim
        self.chunk_size = chunk_size
        self.use_bias = use_bias
        self.use_conv_bias = use_conv_bias
        self.layer_norm_epsilon = layer_norm_epsilon
        self.mixer_rms_eps = mixer_rms_eps
        self.residual_in_fp32 = residual_in_fp32
        self.initializer_range = initializer_range
        self.time_step_min = time_step_min
        self.time_step_max = time_step_max
        self.time_step_floor = time_step_floor
        # JSON has no infinity: an open upper limit is stored as null
        low, high = time_step_limit
        is_open = high is None or math.isinf(high)
        self.time_step_limit = [float(low), None if is_open else float(high)]
        if isinstance(compression, CompressionConfig):
            compression = compression.to_dict()
        self.compression = CompressionConfig.from_dict(compression or {}).to_dict()
        self.compressor_init = compressor_init
        if "{question}" not in question_template:
            raise InputError(f"question_template={question_template!r} lacks {{question}}")
        self.question_template = question_template
        self.use_cache = use_cache
        if backbone_type == "mamba2":
            if self.num_heads * head_dim != self.intermediate_size:
                raise InputError(
                    f"num_heads * head_dim = {self.num_heads * head_dim} must equal "
                    f"intermediate_size = {self.intermediate_size}"
                )
            if self.num_heads % n_groups:
                raise InputError(
                    f"num_heads = {self.num_heads} is no multiple of n_groups = {n_groups}"
                )
        super().__init__(  # type: ignore[call-arg]
            tie_word_embeddings=tie_word_embeddings,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )

    @property
    def compression_config(self) -> CompressionConfig:
        """The stored compression settings, validated."""
        return CompressionConfig.from_dict(self.compression)

    @property
    def dt_limit(self) -> tuple[float, float]:
        """Bounds of Mamba-2's Delta after softplus; (0, inf) leaves it alone."""
        low, high = self.time_step_limit
        return float(low or 0), math.inf if high is None else high
