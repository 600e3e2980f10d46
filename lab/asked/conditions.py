"""The conditions under which planted questions are asked: whose weights, how, and what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.chunks import Chunks
from remamba.methods.decimate import Decimate
from remamba.methods.filter import Filter
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.rule_table import Calibrated
from remamba.methods.scale import Scale
from remamba.methods.shorten import Drop
from remamba.methods.twice import Twice

MODEL, PLAIN, NOBODY = "model", "plain", "nobody"
WHOLE, DROP20, MIDDLE, LAST = "whole", "drop20", "middle", "last"
BM25, ORACLE = "bm25", "oracle"
DROPPED = 0.2

WORDS = {
    "two-stage": "the model with its own compression",
    "stage1": "the same weights with compression off: one reading",
    "random": "as two-stage, but the kept tokens are drawn at random",
    "fixed": "as two-stage, but the kept tokens are evenly spread",
    "drop": "as two-stage, but the span is cut away and nothing kept",
    "plain": "the plain model, one reading",
    "plain-drop20": "the plain model, the first fifth of each document cut away",
    "plain-middle": "the plain model, the document's middle cut out ({middle} tokens are left)",
    "plain-last": "the plain model on the document's last {last} tokens",
    "plain-bm25": "the plain model on the paragraphs that BM25 finds ({bm25} tokens)",
    "plain-chunks": "the plain model on chunks of {chunks} tokens; the surest answers (OPRM)",
    "plain-chunks-bm25": "as plain-chunks, among the 3 chunks that BM25 ranks first",
    "plain-chunks-random": "as plain-chunks, but any chunk answers",
    "plain-chunks-oracle": "the plain model on the chunk that holds the evidence alone",
    "plain-twice": "the plain model, document and question given twice",
    "plain-filter": "the plain model; slow channels skip weak tokens (LongMamba's filter)",
    "plain-scale": "the plain model, each layer's time steps scaled, by a calibrated table",
    "plain-decimate": "the plain model; weak tokens leave its middle layer, {decimate} stay"
    " (DeciMamba)",
    "model-bm25": "the weights of stage1 on the paragraphs that BM25 finds ({bm25} tokens)",
    "two-stage-bm25": "as two-stage, but on the paragraphs that BM25 finds ({bm25} tokens)",
    "constant": "the most frequent answer of each task in these data, without a model",
}
"""Condition -> what it is, in words."""
COMPRESSING = ("two-stage", "random", "fixed", "drop", "two-stage-bm25")
BY_TABLE: dict[str, type[Calibrated]] = {"plain-filter": Filter, "plain-scale": Scale}
"""Conditions that need a table, made for the plain model by `remamba calibrate`."""
FORMER = {"plain-truncate": "plain-middle"}
"""What a condition was called -> what it is called now."""
PASSAGES64 = "-passages64"
"""Ends the name of a recorded BM25 condition whose passages had at most 64 tokens."""


@dataclass(frozen=True)
class Condition:
    """One way of answering."""

    name: str
    words: str
    answers_by: str
    """Which of the run's models: MODEL, PLAIN or a name of the caller's; or NOBODY."""
    method: Method = field(default_factory=Plain)
    reads: str = WHOLE
    """WHOLE, or how the document is shortened first: DROP20, MIDDLE, LAST, BM25, ORACLE."""
    reads_tokens: int | None = None
    """Most tokens that are left of it; None where that is no setting."""
    is_of_map: bool = False
    """Whether it is a cell of a map over p and rho."""

    @property
    def compression(self) -> CompressionConfig | None:
        """The settings of its two stages; None where it has one."""
        return self.method.compression if isinstance(self.method, ReMamba) else None

    @property
    def folder(self) -> str:
        """Where its files go, below the run's folder."""
        return f"map/{self.name}" if self.is_of_map else self.name

    def settings(self) -> dict[str, Any]:
        """What makes its answers what they are, beside the weights and the data."""
        return {
            "condition": self.name,
            "words": self.words,
            "method": self.method.to_dict(),
            "reads": self.reads,
            "reads_tokens": self.reads_tokens,
        }


def name_of_recorded(name: str, words: str) -> str:
    """What a condition of a recorded run is called now, by its name and words in scores.json.

    Runs of commit 570a7f5 and before read passages of at most 64 tokens as plain-bm25 and
    model-bm25: another algorithm, so another name.
    """
    if name.endswith(BM25) and "on the passages that BM25" in words:
        return name + PASSAGES64
    return FORMER.get(name, name)


def make_conditions(
    names: Sequence[str] | None,
    settings: CompressionConfig | None,
    *,
    has_plain: bool,
    middle: int,
    bm25: int,
    last: int = 500,
    chunks: int = 500,
    decimate: int = 2000,
    tables: Mapping[str, str] | None = None,
) -> list[Condition]:
    """The conditions of the names, in the table's order; None: all that can be had.

    Args:
        settings: of two-stage; None where the model does not compress.
        tables: condition of BY_TABLE -> the file of its table.

    Raises:
        InputError: a name is unknown, or its condition cannot be had.
    """
    if former := [name for name in names or () if name in FORMER]:
        name = FORMER[former[0]]
        raise InputError(f"--conditions {former[0]} is now called {name}; give --conditions {name}")
    if unknown := [name for name in names or () if name not in WORDS]:
        raise InputError(f"--conditions {unknown[0]}: choose of {', '.join(WORDS)}")
    if names is None:
        names = [
            name
            for name in WORDS
            if (has_plain or not name.startswith("plain"))
            and (settings or name not in COMPRESSING)
            and (name not in BY_TABLE or name in (tables or {}))
        ]
    budgets = {MIDDLE: middle, LAST: last, BM25: bm25, "chunks": chunks, "decimate": decimate}
    return [
        _condition(name, settings, has_plain, budgets, (tables or {}).get(name))
        for name in WORDS
        if name in names
    ]


def _condition(
    name: str,
    settings: CompressionConfig | None,
    has_plain: bool,
    budgets: Mapping[str, int],
    table: str | None,
) -> Condition:
    words = WORDS[name].format(**budgets)
    if name == "constant":
        return Condition(name, words, NOBODY)
    answers_by = PLAIN if name.startswith("plain") else MODEL
    if answers_by == PLAIN and not has_plain:
        raise InputError(f"--conditions {name} needs a plain model; give --plain DIR")
    chunks = budgets["chunks"]
    methods: dict[str, Method] = {
        "plain-chunks": Chunks(chunks),
        "plain-chunks-bm25": Chunks(chunks, candidates=3),
        "plain-chunks-random": Chunks(chunks, choice="random"),
        "plain-twice": Twice(),
        "plain-decimate": Decimate(budgets["decimate"]),
    }
    if name in BY_TABLE:
        if table is None:
            raise InputError(
                f"--conditions {name} needs a table for the plain model (remamba calibrate); give "
                f"--{name.removeprefix('plain-')}-rule FILE"
            )
        return Condition(name, words, answers_by, BY_TABLE[name](table))
    if name in methods:
        return Condition(name, words, answers_by, methods[name])
    if name == "plain-chunks-oracle":
        return Condition(name, words, answers_by, reads=ORACLE, reads_tokens=chunks)
    reads = name.rpartition("-")[2]
    if name not in COMPRESSING and reads in (DROP20, MIDDLE, LAST, BM25):
        left = budgets.get(reads)
        return Condition(name, words, answers_by, reads=reads, reads_tokens=left)
    if name in ("stage1", "plain"):
        return Condition(name, words, answers_by)
    if settings is None:
        raise InputError(
            f"--conditions {name} needs a model that compresses; leave --method plain away, or "
            "give --conditions stage1"
        )
    if name == "drop":
        return Condition(name, words, MODEL, Drop(settings.start, settings.length))
    if name == "two-stage-bm25":
        return Condition(name, words, MODEL, ReMamba(settings), BM25, budgets[BM25])
    if name != "two-stage":
        settings = settings.replace(selector=name)
    return Condition(name, words, MODEL, ReMamba(settings))


def map_conditions(
    settings: CompressionConfig | None, lengths: Sequence[float], keep_ratios: Sequence[float]
) -> list[Condition]:
    """Two-stage at every span length p and keep ratio rho.

    Raises:
        InputError: the model does not compress, or a value is outside its range.
    """
    if bool(lengths) != bool(keep_ratios):
        raise InputError("--lengths-p and --keep-ratios make a map together; give both or neither")
    if lengths and settings is None:
        raise InputError("--lengths-p needs a model that compresses; leave --method plain away")
    found = []
    for p in dict.fromkeys(lengths):
        for rho in dict.fromkeys(keep_ratios):
            assert settings is not None
            changed = ReMamba(settings.replace(length=p, keep_ratio=rho))
            words = f"two-stage at p = {p:g}, rho = {rho:g}"
            name = f"p{p:g}-rho{rho:g}"
            found.append(Condition(name, words, MODEL, changed, is_of_map=True))
    return found
