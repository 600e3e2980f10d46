"""`plain`: one reading of the whole text, as any Mamba reads, and continuing from its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions, Window, collect, gather_windows, run_pass
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.selection import Span
from remamba.model.backbone import Backbone
from remamba.model.layer_rules import LayerRule
from remamba.model.rows import Batch, to_device
from remamba.model.states import StateCache


@dataclass(frozen=True)
class Plain(Method):
    """One reading of the whole text."""

    name = "plain"

    @property
    def serves_memory(self) -> bool:
        return True

    @property
    def wants_question(self) -> bool:
        return False

    def in_words(self) -> str:
        return "No compression: the prompt is read once, as it is."

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        return (yield from read_plain(model.backbone, batch, cache, options))

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        span = no_span(documents)
        return (yield from read_documents(model.backbone, documents, span, self, options))

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        states, _ = states_for(questions, memory)
        return (yield from read_plain(model.backbone, questions, states, options))


def read_plain(
    backbone: Backbone,
    batch: Batch,
    cache: StateCache | None,
    options: PassOptions,
    rule: LayerRule | None = None,
) -> Steps[Passage]:
    """One pass of plain Mamba, or by a layer rule, from the cache's states if it has any."""
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, batch.lengths, cache, options, rule=rule)
    hidden = yield from collect(pieces, batch.lengths, options.tail)
    return Passage(batch, hidden, batch.lengths, batch.labels, cache)


def read_on(
    backbone: Backbone, batch: Batch, cache: StateCache, options: PassOptions
) -> Steps[Passage]:
    """Plain Mamba continues a filled cache; the token that is still unread there comes first."""
    text = cache.text
    if text is None:
        return (yield from read_plain(backbone, batch, cache, options))
    if bool((text.behind_end > 0).any()):
        row = int((text.behind_end > 0).nonzero()[0])
        raise InputError(
            f"cache_params cannot go on with row {row}: it ended before other rows of its batch, "
            f"and its states have read {int(text.behind_end[row])} tokens of padding since; "
            "generate it by itself, or cut the finished rows out with cache_params.select(rows)"
        )
    longer, cache.text = batch.behind(text.pending, backbone.embeddings), None
    embeds = longer.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, longer.lengths, cache, options)
    hidden = yield from collect(pieces, longer.lengths, min(options.tail, int(batch.lengths.max())))
    if not options.tail:
        hidden = hidden[:, text.pending.shape[1] :]
    return Passage(batch, hidden, batch.lengths, batch.labels, cache)


def read_documents(
    backbone: Backbone,
    batch: Batch,
    span: Span,
    method: Method,
    options: PassOptions,
    rule: LayerRule | None = None,
) -> Steps[tuple[DocumentMemory, Tensor | None]]:
    """Read documents once, and keep what later questions need: the states over the span.

    PassOptions.with_stage1 adds the states of all positions, (b, l, d).
    """
    cache = StateCache(len(backbone.layers))
    windows = [Window(span.start, int(span.length.max()))]
    if options.with_stage1:
        windows.append(Window(torch.zeros_like(batch.lengths), int(batch.lengths.max())))
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, batch.lengths, cache, options, rule=rule)
    hidden, *everything = yield from gather_windows(pieces, *windows)
    memory = DocumentMemory(hidden, span, batch.lengths, cache, method, input_ids=batch.input_ids)
    return memory, everything[0] if everything else None


def no_span(documents: Batch) -> Span:
    """No position of any document."""
    nothing = torch.zeros_like(documents.lengths)
    return Span(nothing, nothing.clone())


def states_for(questions: Batch, memory: DocumentMemory) -> tuple[StateCache, Tensor]:
    """The documents' states, a copy for each row of questions, and each row's document (b,)."""
    if questions.rows % memory.batch_size:
        raise InputError(
            f"{questions.rows} rows of questions do not divide among the {memory.batch_size} "
            "documents of the memory"
        )
    document = torch.arange(questions.rows) // (questions.rows // memory.batch_size)
    states = memory.cache.copy()
    if questions.rows > memory.batch_size:
        states = states.select(to_device(document, questions.device))
    return states, document
