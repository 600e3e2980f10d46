"""CompressionConfig: how a prompt is compressed, checked without torch and transformers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from remamba.errors import InputError

SELECTORS = ("topk", "random", "fixed", "drop", "none")
PLACEMENTS = ("replace", "append", "before_question")
ADAPTIONS = ("selective", "exact", "multiplicative", "none")
VALUES = ("hidden", "residual")
IMPORTANCES = ("relu", "relative")
SCORE_GRADIENTS = ("scaled", "true")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError for a value that is none of the allowed ones."""
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
        one_of("selector", self.selector, SELECTORS)
        one_of("placement", self.placement, PLACEMENTS)
        one_of("adaption", self.adaption, ADAPTIONS)
        one_of("value", self.value, VALUES)
        one_of("importance", self.importance, IMPORTANCES)
        one_of("score_gradient", self.score_gradient, SCORE_GRADIENTS)

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
