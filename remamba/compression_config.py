"""CompressionConfig: how a prompt is compressed, checked without torch and transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from remamba.errors import InputError
from remamba.fields import check_fields, shown

SELECTORS = ("topk", "random", "fixed")
PLACEMENTS = ("replace", "append", "before_question")
ADAPTIONS = ("selective", "exact", "multiplicative", "none")
VALUES = ("hidden", "residual")
IMPORTANCES = ("relu", "relative")
DEFAULT_KEEP_RATIO = 0.009
FORMER = {"min_prompt_length": (0,), "score_gradient": ("scaled", "true")}
"""Options of version 0.1 that are gone, and the values with which its files still load: none of
them changes what is computed."""


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError for a value that is none of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name}={shown(value)} is unknown; choose one of {', '.join(allowed)}")


def _check_names(values: Iterable[str], settings: type) -> None:
    """Raise InputError for a name that is no field of the settings class."""
    known = {field.name for field in dataclasses.fields(settings)}
    if unknown := sorted(set(values) - known):
        raise InputError(
            f"unknown compression setting {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )


@dataclass(frozen=True)
class CompressionConfig:
    """The settings of `remamba`'s two stages; paper symbols in brackets.

    Raises:
        InputError: a value is outside its range; start + length is above 1, so that the span would
            swallow the last token; or an option would have no effect beside another.
    """

    start: float = 0.0
    """Where the span starts, as a share of the prompt (or of the document) [s]."""
    length: float = 0.18
    """How much of the prompt (or of the document) the span covers [p]."""
    keep_ratio: float | None = None
    """Share of the span's positions that are kept [rho]; 0.009 where neither this nor num_kept is
    given."""
    num_kept: int | None = None
    """Number of positions kept, in place of a share [K]."""
    selector: str = "topk"
    """topk (Eq. 4) | random | fixed."""
    window: int = 1
    """A position counts with the best score of itself and the window - 1 positions after it, so
    that the token found brings those before it: words of several tokens stay whole. Of topk."""
    placement: str = "replace"
    """Where the kept vectors stand: replace (the paper) | append | before_question."""
    adaption: str = "selective"
    """selective (Eq. 8, as released) | exact (alpha times Delta itself) | multiplicative | none."""
    value: str = "hidden"
    """What a kept vector is: hidden (Value of the state, Eq. 5) | residual (that plus the token's
    own embedding, so that a token is read again even where Value never met it)."""
    importance: str = "relu"
    """alpha of a kept vector: relu (of its score, Eq. 8) | relative (exp(16 (score - best kept
    score)): 1 for the best, near 0 for all that score clearly less)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keep_ratio is None and self.num_kept is None:
            object.__setattr__(self, "keep_ratio", DEFAULT_KEEP_RATIO)
        if not 0.0 <= self.start < 1.0:
            raise InputError(f"start (s) = {self.start} is outside [0, 1)")
        if not 0.0 < self.length <= 1.0:
            raise InputError(f"length (p) = {self.length} is outside (0, 1]")
        if self.keep_ratio is not None and not 0.0 < self.keep_ratio <= 1.0:
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
        if self.selector in ("none", "drop"):
            method = {"none": "plain", "drop": "drop"}[self.selector]
            raise InputError(f"selector={self.selector!r} is now the method {method!r}")
        one_of("selector", self.selector, SELECTORS)
        one_of("placement", self.placement, PLACEMENTS)
        one_of("adaption", self.adaption, ADAPTIONS)
        one_of("value", self.value, VALUES)
        one_of("importance", self.importance, IMPORTANCES)
        self._check_effects()

    def _check_effects(self) -> None:
        """Raise InputError for options of which one leaves the other without effect."""
        if self.keep_ratio is not None and self.num_kept is not None:
            raise InputError(
                f"keep_ratio = {self.keep_ratio} and num_kept = {self.num_kept} both tell how much "
                "is kept; give one of them"
            )
        if self.window != 1 and self.selector != "topk":
            raise InputError(
                f"window = {self.window} has no effect with selector={self.selector!r}; leave it "
                "out, or choose by topk"
            )
        if self.importance != "relu" and self.adaption == "none":
            raise InputError(
                f"importance={self.importance!r} has no effect with adaption='none'; leave it out"
            )

    @property
    def covers_document(self) -> bool:
        """True when stage 2 needs the document's states alone, so that a memory can serve it."""
        whole = self.start == 0.0 and self.length == 1.0 and self.placement == "replace"
        return whole or self.placement == "before_question"

    @property
    def spans(self) -> float | tuple[float, ...]:
        """p of all rows, or of each."""
        return self.length

    @property
    def keep_ratios(self) -> float | tuple[float, ...] | None:
        """rho of all rows, or of each; None where K is given."""
        return self.keep_ratio

    def replace(self, **changes: Any) -> CompressionConfig:
        """The settings with changes; what would lose its effect by one returns to its default.

        Raises:
            InputError: a change names no setting, or a value is outside its range.
        """
        _check_names(changes, type(self))
        if changes.get("keep_ratio") is not None:
            changes.setdefault("num_kept", None)
        if changes.get("num_kept") is not None:
            changes.setdefault("keep_ratio", None)
        if changes.get("selector", "topk") != "topk":
            changes.setdefault("window", 1)
        if changes.get("adaption") == "none":
            changes.setdefault("importance", "relu")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name; of keep_ratio and num_kept the one that counts."""
        return {name: x for name, x in dataclasses.asdict(self).items() if x is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompressionConfig:
        """The settings that `to_dict` gave, here or in version 0.1.

        Raises:
            InputError: an option is unknown or outside its range.
        """
        if not isinstance(values, dict):
            raise InputError(f"compression = {shown(values)} must hold settings by name")
        values = dict(values)
        is_former = any(name in values for name in FORMER)
        for name, harmless in FORMER.items():
            if values.pop(name, harmless[0]) not in harmless:
                raise InputError(f"the compression setting {name!r} is gone; leave it out")
        _check_names(values, CompressionConfig)
        if is_former:  # where two told one thing, the second counted
            if values.get("num_kept") is not None:
                values.pop("keep_ratio", None)
            if values.get("selector", "topk") != "topk":
                values.pop("window", None)
            if values.get("adaption") == "none":
                values.pop("importance", None)
        return CompressionConfig(**values)


@dataclass(frozen=True)
class RowCompression(CompressionConfig):
    """Compression with p and rho of its own for each row of a batch, as training draws them.

    Where documents stand apart, a row is a document. `length` and `keep_ratio` are the means. No
    model is saved with it.
    """

    drawn_lengths: tuple[float, ...] = ()
    """p of each row."""
    drawn_keep_ratios: tuple[float, ...] = ()
    """rho of each row; empty where K is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for length in self.drawn_lengths:
            CompressionConfig(start=self.start, length=length)
        for keep_ratio in self.drawn_keep_ratios:
            CompressionConfig(keep_ratio=keep_ratio)

    @property
    def spans(self) -> float | tuple[float, ...]:
        return self.drawn_lengths

    @property
    def keep_ratios(self) -> float | tuple[float, ...] | None:
        return self.drawn_keep_ratios or self.keep_ratio
