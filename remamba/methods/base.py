"""What a method is, and the methods by name. It loads no torch, so that commands can list them.

A method turns a prompt into the states that decoding goes on from. A name means one algorithm
everywhere: in `model(..., method=)`, `generate`, the command line, evaluations and saved memories.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.fields import check_fields, shown

if TYPE_CHECKING:
    from torch import Tensor

    from remamba.execution.passes import PassOptions
    from remamba.execution.steps import Steps
    from remamba.methods.memory import DocumentMemory
    from remamba.methods.selection import Kept
    from remamba.model.layer_rules import Scaling
    from remamba.model.rows import Batch
    from remamba.model.states import StateCache

METHODS = {
    "plain": ("remamba.methods.plain:Plain", "one reading of the whole text"),
    "remamba": (
        "remamba.methods.remamba:ReMamba",
        "two readings: the second has the best vectors of the first in place of a span",
    ),
    "last": ("remamba.methods.shorten:Last", "one reading of the document's last tokens"),
    "middle": (
        "remamba.methods.shorten:Middle",
        "one reading of the document without its middle (the authors' cut)",
    ),
    "bm25": ("remamba.methods.bm25:Bm25", "one reading of the passages that BM25 finds"),
    "chunks": (
        "remamba.methods.chunks:Chunks",
        "the document's chunks read apart, and an answer from the surest (OPRM)",
    ),
    "twice": ("remamba.methods.twice:Twice", "one reading of the prompt given twice (JRT)"),
    "filter": (
        "remamba.methods.filter:Filter",
        "one reading whose weak tokens leave the slow channels alone (LongMamba)",
    ),
    "scale": (
        "remamba.methods.scale:Scale",
        "one reading, and an answer, with every layer's time steps scaled (MambaExtend)",
    ),
    "decimate": (
        "remamba.methods.decimate:Decimate",
        "one reading in which weak tokens leave the sequence in some layers (DeciMamba)",
    ),
    "drop": ("remamba.methods.shorten:Drop", "one reading of the document without a span"),
}
"""Name -> (module:class, what it is)."""
MOST_SHORTENED = 4
"""How often one method may be put before another by a +."""
FORMER = {"none": "plain", "truncate": "last (or middle, which cuts the middle out)"}
"""Former names of methods -> their names now."""


@dataclass
class Passage:
    """The result of a method: the last reading's states, and where their positions came from."""

    batch: Batch
    """The rows that the last reading continued: the prompts, or the questions alone."""
    hidden: Tensor
    """(b, l', d)."""
    lengths: Tensor
    """(b,) real positions; on the host."""
    labels: Tensor | None
    """(b, l') the labels, moved to the positions of `hidden`."""
    cache: StateCache | None
    kept: Kept | None = None
    scores: Tensor | None = None
    """(b, m) importance scores over the span, of methods that score."""
    reading: Any = None
    """Stage 1 of `remamba` (its `Reading`); None of methods that read once."""
    chosen: Tensor | None = None
    """(b,) the chunk that each row goes on from, of `chunks`; on the host."""


@dataclass(frozen=True)
class Method:
    """A way of reading. Its fields are its own options; no method has another one's."""

    name: ClassVar[str]
    needs_training: ClassVar[bool] = False
    """Whether it gains anything only with a model that was trained for it."""

    def __post_init__(self) -> None:
        """Raise InputError for an option of another type than its field's."""
        check_fields(self, lambda name: f"the method {self.name}: {name}")

    @property
    def serves_memory(self) -> bool:
        """Whether a document may be read before its questions are known."""
        raise NotImplementedError

    @property
    def wants_question(self) -> bool:
        """Whether it needs to know where in a prompt the question begins."""
        return True

    @property
    def needs_text(self) -> bool:
        """Whether it chooses by words, so that a Reader has to choose for the model."""
        return False

    @property
    def has_rule(self) -> bool:
        """Whether layers read by a rule of their own, so that its states are no plain Mamba's."""
        return False

    def check(self, model: Any) -> None:
        """Raise InputError where this model cannot read so."""

    def goes_on_by(self, model: Any) -> Scaling | None:
        """The layer rule of what is read behind its prompts, the answer; None: plain Mamba's."""
        return None

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, so that a row's result depends on the rows beside it."""
        return False

    def in_words(self) -> str:
        """What it does with a prompt, as a sentence for reports."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The name and all options, for memories and run.json; `method_of` reads it back."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        made = {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in options.items()}
        return {"name": self.name, **made}

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        """The states behind whole prompts, in which document and question stand together.

        As all three ways to read, it stops behind every piece (`execution/steps.py`).

        Args:
            model: a ReMambaModel.
            cache: empty; it is filled. None: nothing is decoded behind.
        """
        raise NotImplementedError

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        """A memory of the documents; with options.with_stage1 also their last states, (b, l, d)."""
        raise NotImplementedError

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        """The states behind questions, asked of documents that this method has read.

        Rows of questions are document-major: row i asks document i // (rows / documents).
        """
        raise NotImplementedError


def method_class(name: str) -> type[Method]:
    """The class of a name.

    Raises:
        InputError: there is no such method; of a former name the new one is told.
    """
    if name in FORMER:
        raise InputError(f"the method {name!r} is now called {FORMER[name]}")
    if name not in METHODS:
        raise InputError(f"{shown(name)} is no method; choose one of {', '.join(METHODS)}")
    module, _, class_name = METHODS[name][0].partition(":")
    return getattr(importlib.import_module(module), class_name)


def method_of(
    wanted: str | dict[str, Any] | Method, compression: CompressionConfig | None = None
) -> Method:
    """The method meant by a name, by what `Method.to_dict` gave, or by the method itself.

    Args:
        compression: the settings of `remamba` where only its name is given; None: the paper's.

    Raises:
        InputError: no such method, or no such option of it.
    """
    if isinstance(wanted, Method):
        return wanted
    if isinstance(wanted, str):
        if wanted == "remamba":
            return method_class(wanted)(compression or CompressionConfig())  # type: ignore[call-arg]
        shorter, plus, reader = wanted.partition("+")
        if wanted.count("+") > MOST_SHORTENED:
            raise InputError(
                f"the method {shown(wanted)} shortens more than {MOST_SHORTENED} times; leave some "
                "of them out"
            )
        if plus:  # "last+remamba": what is left is read by the second
            return _shortened(shorter, method_of(reader, compression))
        return method_class(wanted)()
    if not isinstance(wanted, dict):
        raise InputError(f"{shown(wanted)} is no method; choose one of {', '.join(METHODS)}")
    options = {str(name): value for name, value in wanted.items()}
    kind = method_class(str(options.pop("name", "")))
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"unknown option {unknown[0]!r} of the method {kind.name}; known are "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    if "compression" in options:
        options["compression"] = CompressionConfig.from_dict(options["compression"])
    if isinstance(options.get("reader"), dict):
        try:
            options["reader"] = method_of(options["reader"])
        except RecursionError as error:
            raise InputError("the method's readers are nested too deep; leave some out") from error
    return kind(**options)


def _shortened(name: str, reader: Method) -> Method:
    kind = method_class(name)
    if "reader" not in {field.name for field in dataclasses.fields(kind)}:
        raise InputError(f"{name!r} does not shorten, so nothing can stand behind its +")
    return kind(reader=reader)  # type: ignore[call-arg]


def own_method(config: Any) -> Method:
    """The method in a model's ReMambaConfig, which counts where a call names none."""
    settings = config.compression_config
    if config.method == "drop":
        return method_of({"name": "drop", "start": settings.start, "length": settings.length})
    return method_of(config.method, settings)


def recorded_method(record: dict[str, Any]) -> Method:
    """The method recorded in a run.json, written by this version or by version 0.1."""
    if "method" in record:
        return method_of(record["method"])
    return former_method(record.get("compression"))


def former_method(compression: dict[str, Any] | None) -> Method:
    """The method meant by settings that version 0.1 wrote, where None was plain Mamba.

    Its selectors "none" and "drop" are the methods `plain` and `drop` now.
    """
    selector = None if compression is None else compression.get("selector")
    if compression is None or selector == "none":
        return method_of("plain")
    if selector == "drop":
        given = {name: compression[name] for name in ("start", "length") if name in compression}
        return method_of({"name": "drop"} | given)
    return method_of({"name": "remamba", "compression": compression})
