"""`last`, `middle`, `drop`: leave a part of the document out, and read the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain
from remamba.methods.selection import Span, span_bounds
from remamba.model.layer_rules import Scaling
from remamba.model.rows import Batch
from remamba.model.states import StateCache


@dataclass(frozen=True)
class Shorten(Method):
    """Leaves a range of the document's positions out, and has the rest read by another method."""

    reader: Method = field(default_factory=Plain, kw_only=True)
    """The method that reads what is left."""

    @property
    def serves_memory(self) -> bool:
        return self.reader.serves_memory

    @property
    def has_rule(self) -> bool:
        return self.reader.has_rule

    def check(self, model: Any) -> None:
        self.reader.check(model)

    def goes_on_by(self, model: Any) -> Scaling | None:
        return self.reader.goes_on_by(model)

    @property
    def draws(self) -> bool:
        return self.reader.draws

    def in_words(self) -> str:
        behind = "" if isinstance(self.reader, Plain) else f" {self.reader.in_words()}"
        return f"{self._left()}{behind}"

    def _left(self) -> str:
        """What is left of the document, as a sentence."""
        raise NotImplementedError

    def left_out(self, lengths: Tensor, limit: Tensor) -> Span:
        """The positions of each row that are not read.

        Args:
            lengths: (b,) tokens of each document; on the host.
            limit: (b,) the first position that has to stay.
        """
        raise NotImplementedError

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        limit = torch.minimum(batch.document_lengths, batch.prompt_lengths - 1)
        span = self.left_out(batch.document_lengths, limit)
        passage = yield from self.reader.prefill(model, batch.without(*span), cache, options)
        if passage.kept is not None:  # positions are told in the rows as they were given
            start, length = (
                x.to(passage.kept.index.device)[:, None] for x in (span[0], span.length)
            )
            index = passage.kept.index
            index = torch.where(index < start, index, index + length)
            passage.kept = passage.kept._replace(index=index)
            if cache is not None:
                cache.kept = passage.kept
        return passage

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        span = self.left_out(documents.lengths, documents.lengths)
        if bool((span.length == documents.lengths).any()):
            raise InputError(
                f"the method {self.name} leaves nothing of a document for a memory; ask it "
                "together with its question"
            )
        memory, states = yield from self.reader.read(model, documents.without(*span), options)
        memory.method = self
        return memory, states

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        if memory.method != self:
            raise InputError(
                f"the memory was read by {memory.method.to_dict()}, not by {self.to_dict()}; read "
                "it again"
            )
        memory = replace(memory, method=self.reader)  # which read what is left as its own
        return (yield from self.reader.answer(model, questions, memory, options))


@dataclass(frozen=True)
class Last(Shorten):
    """The document's last tokens."""

    name = "last"

    tokens: int = 2000
    """How many of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.name, self.tokens)

    def _left(self) -> str:
        return f"Only the last {self.tokens} tokens of the document are read (last)."

    def left_out(self, lengths: Tensor, limit: Tensor) -> Span:
        stop = torch.minimum((lengths - self.tokens).clamp(min=0), limit)
        return Span(torch.zeros_like(stop), stop)


@dataclass(frozen=True)
class Middle(Shorten):
    """The document without its middle: its first and its last tokens, half of each."""

    name = "middle"

    tokens: int = 2000
    """How many are left; of an odd number, the larger half stands at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.name, self.tokens)

    def _left(self) -> str:
        return f"The middle of the document is cut out, {self.tokens} tokens are left (middle)."

    def left_out(self, lengths: Tensor, limit: Tensor) -> Span:
        first = torch.minimum(torch.full_like(lengths, self.tokens // 2), limit)
        stop = lengths - (self.tokens - self.tokens // 2)
        return Span(first, torch.maximum(first, torch.minimum(stop, limit)))


@dataclass(frozen=True)
class Drop(Shorten):
    """The document without the span that `remamba` would compress: nothing stands in its place."""

    name = "drop"

    start: float = 0.0
    """Where the span starts, as a share of the document [s]."""
    length: float = 0.18
    """How much of the document it covers [p]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        CompressionConfig(start=self.start, length=self.length)

    def _left(self) -> str:
        return (
            f"The span from {self.start:g} on, {self.length:g} of the document, is cut away (drop)."
        )

    def left_out(self, lengths: Tensor, limit: Tensor) -> Span:
        return span_bounds(lengths, limit, CompressionConfig(start=self.start, length=self.length))


def _check_tokens(name: str, tokens: int) -> None:
    if tokens < 1:
        raise InputError(f"the method {name} with tokens = {tokens!r}: give a number from 1 on")
