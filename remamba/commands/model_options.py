"""The options that name a model and how it reads, shared by the commands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from remamba.compression_config import (
    ADAPTIONS,
    IMPORTANCES,
    PLACEMENTS,
    SELECTORS,
    VALUES,
    CompressionConfig,
)
from remamba.engine.loading import CPU_PIECE, GPU_PIECE, resolve_device, resolve_dtype
from remamba.errors import InputError
from remamba.methods.base import METHODS, Method, method_of
from remamba.options import add_options, given
from remamba.train.recipes import NAMES, recipe_compression

if TYPE_CHECKING:
    from remamba import Reader

OWN = "(default: the model's own)"
CHOICES = {
    "selector": SELECTORS,
    "placement": PLACEMENTS,
    "adaption": ADAPTIONS,
    "value": VALUES,
    "importance": IMPORTANCES,
}
"""Words that settings of `remamba` may be."""
OPTIONS = {
    "method_tokens": "tokens",
    "candidates": "candidates",
    "rule": "rule",
    "factor": "factor",
    "factor_of": "of",
    "decimate_layers": "layers",
}
"""Options that are fields of some methods: their name here -> there."""


@dataclass(frozen=True, kw_only=True)
@add_options(CompressionConfig, CHOICES)
class ModelOptions:
    """Which model reads, and how it reads (letters in brackets are the paper's)."""

    model: Annotated[str, arg(metavar="NAME|DIR")] = "remamba-tiny"
    """A model directory, a hub name, or remamba-tiny, which comes with the package."""
    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Its numbers: auto is float32 on a CPU and bfloat16 on a GPU."""
    method: Annotated[str | None, arg(metavar="|".join(METHODS), help_behavior_hint=OWN)] = None
    """The way of reading; last+remamba and bm25+remamba shorten the document first. The settings of
    remamba are the options from --start to --importance."""
    recipe: Annotated[str | None, arg(metavar="|".join(NAMES), help_behavior_hint="")] = None
    """The settings that a model trained by this recipe is saved with, in place of the model's
    own; what is given beside it takes its place."""
    method_tokens: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many tokens of the document the methods last, middle, bm25 and decimate leave; of the
    method chunks, how many a chunk has at most."""
    candidates: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Of the method chunks: ask only the N chunks that BM25 ranks first."""
    rule: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Of the methods filter and scale: the table that `remamba calibrate` made for this model."""
    factor: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Of the method scale: one factor for every layer, in place of a table."""
    factor_of: Annotated[
        Literal["steps", "A", "A_log"] | None, arg(metavar="steps|A|A_log", help_behavior_hint="")
    ] = None
    """Of the method scale: what --factor scales (default: steps)."""
    decimate_layers: Annotated[
        tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="")
    ] = None
    """Of the method decimate: the layers in which tokens leave (default: the middle one)."""
    piece_length: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint=f"(default: {CPU_PIECE}, on a GPU {GPU_PIECE})"),
    ] = None
    """Tokens read at once: bounds the memory that a long text takes, changes no result."""

    def changes(self) -> dict[str, Any]:
        """The settings of `remamba` that are given here, by name."""
        return given(self, CompressionConfig)

    def method_options(self) -> list[str]:
        """Those of OPTIONS that are given here."""
        return [name for name in OPTIONS if getattr(self, name) is not None]

    def chosen(self, reader: Reader) -> Method:
        """The way of reading: the reader's own with what is given here.

        Raises:
            InputError: there is no such method, or an option has no effect with it.
        """
        from remamba.methods.remamba import ReMamba

        own, changes = reader.method, self.changes()
        settings = reader.model.config.compression_config
        if self.recipe is not None:
            settings = CompressionConfig(**recipe_compression(self.recipe))
            own, changes = ReMamba(settings), changes or {"recipe": self.recipe}
        settings = settings.replace(**self.changes())
        method = own if self.method is None else method_of(self.method, settings)
        for name in self.method_options():
            method = _with_option(method, OPTIONS[name], getattr(self, name), flag_of(name))
        if changes:
            method = _with_settings(method, settings, next(iter(changes)))
        return reader.model.resolve_method(method=method)

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


def flag_of(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _with_option(method: Method, field: str, value: Any, flag: str) -> Method:
    """The method with an option of its own, or of the method that reads what it leaves."""
    if field in vars(method):
        return _replaced(method, **{field: value})
    reader = vars(method).get("reader")
    if reader is not None and reader.name != "plain":
        return _replaced(method, reader=_with_option(reader, field, value, flag))
    said = " ".join(map(str, value)) if isinstance(value, tuple) else value
    raise InputError(f"{flag} {said} has no effect with the method {method.name}; leave it out")


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
