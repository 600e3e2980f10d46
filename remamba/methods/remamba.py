"""`remamba`, the paper's method: read the prompt, keep the best of a span, splice, read again.

`reference.py` in this folder does the same for one row, without batches, memories and pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.execution.passes import PassOptions, Window, collect, gather_windows, run_pass
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import read_documents, states_for
from remamba.methods.selection import Span, num_kept, span_bounds
from remamba.methods.splice import plan_adaption, plan_splice, spliced_embeds
from remamba.model.backbone import Backbone
from remamba.model.rows import IGNORE, Batch, cut, ignore_pads, to_device
from remamba.model.states import StateCache


@dataclass(frozen=True)
class ReMamba(Method):
    """Two readings: the second has K vectors of the first in place of a span."""

    name = "remamba"
    needs_training = True

    compression: CompressionConfig = field(default_factory=CompressionConfig)

    @property
    def serves_memory(self) -> bool:
        return self.compression.covers_document

    @property
    def wants_question(self) -> bool:
        return self.compression.covers_document

    @property
    def draws(self) -> bool:
        return self.compression.selector == "random"

    def in_words(self) -> str:
        c = self.compression
        whole = "document" if c.covers_document else "prompt"
        share = f"rho = {c.keep_ratio:g} of" if c.num_kept is None else f"{c.num_kept} of"
        return (
            f"The span from s = {c.start:g}, p = {c.length:g} of the {whole}, is compressed to "
            f"{share} its tokens, chosen by {c.selector}, placed by {c.placement}, adaption "
            f"{c.adaption}."
        )

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        if self.compression.placement != "before_question":
            return (yield from read_twice(model, batch, self.compression, cache, options))
        documents, questions = batch.split()
        memory, _ = yield from read_span(model, documents, self, options.for_reading)
        return (yield from answer(model, questions, memory, self.compression, options))

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        if not self.serves_memory:
            c = self.compression
            raise InputError(
                "a memory needs start=0, length=1 with placement='replace', or placement="
                f"'before_question' (given: start={c.start}, length={c.length},"
                f" placement={c.placement!r}): else stage 2 reads the document again"
            )
        return (yield from read_span(model, documents, self, options))

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        memory = self._narrowed(memory)
        return (yield from answer(model, questions, memory, self.compression, options))

    def _narrowed(self, memory: DocumentMemory) -> DocumentMemory:
        """The memory as this method would have read it: with the states of its own span alone.

        Raises:
            InputError: it was read with settings that these cannot use.
        """
        if memory.method == self:
            return memory
        own = self.compression
        if not own.covers_document:
            raise InputError(
                f"a memory cannot serve placement={own.placement!r} with length={own.length}: "
                "stage 2 would read the document again"
            )
        had = memory.method.compression if isinstance(memory.method, ReMamba) else None
        if had is not None and (own.start, own.length) == (had.start, had.length):
            return memory
        span, held = span_bounds(memory.lengths, memory.lengths, own), memory.span
        if had is None or bool(((span.start < held.start) | (span.stop > held.stop)).any()):
            was = had and f"start={had.start}, length={had.length}"
            raise InputError(
                f"the memory was read with {was or f'the method {memory.method.name}'}, which "
                f"does not hold the states of start={own.start}, length={own.length}; read it again"
            )
        width = int(span.length.max())
        hidden = cut(memory.hidden, span.start - held.start, width)
        return dataclasses.replace(memory, hidden=hidden, span=span, method=self)


class Reading(NamedTuple):
    """What stage 1 leaves: the states that the selection and stage 2 need."""

    hidden: Tensor
    """(documents, m, d) of the span [h_i]."""
    span: Span
    """The positions to compress in each document."""
    last_hidden: Tensor
    """(b, d) of the last prompt token [h_L]."""
    everything: Tensor | None
    """(b, l, d) of all positions, if PassOptions.with_stage1."""


def _read_prompts(
    backbone: Backbone, batch: Batch, span: Span, cache: StateCache | None, options: PassOptions
) -> Steps[Reading]:
    """Stage 1 over prompts. It reads the answers too, if stage 1 is to have a loss of its own."""
    lengths = batch.lengths if options.with_stage1 else batch.prompt_lengths
    windows = [Window(span.start, int(span.length.max())), Window(batch.prompt_lengths - 1, 1)]
    if options.with_stage1:
        windows.append(Window(torch.zeros_like(lengths), int(lengths.max())))
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, lengths, cache, options)
    hidden, last, *everything = yield from gather_windows(pieces, *windows)
    return Reading(hidden, span, last[:, 0], everything[0] if everything else None)


def _reread(
    model: Any,
    batch: Batch,
    reading: Reading,
    compression: CompressionConfig,
    at: Tensor,
    removed: Tensor,
    cache: StateCache | None,
    options: PassOptions,
    embeddings: Callable[[Tensor], Tensor],
) -> Steps[Passage]:
    """Selection and stage 2: K vectors are put in at position `at`, for `removed` tokens there."""
    backbone, compressor = model.backbone, model.compressor
    scores = yield from compressor.scores(reading.hidden, reading.last_hidden)
    kept = compressor.keep(reading.hidden, scores, reading.span, compression, embeddings)
    rows = num_kept(reading.span, compression).repeat_interleave(batch.rows // len(reading.hidden))
    plan = plan_splice(batch.lengths, at, removed, rows).to(batch.device)
    adaption = plan_adaption(plan, kept, compression)
    embeds = spliced_embeds(batch, backbone.embeddings, plan, kept)
    pieces = run_pass(backbone, embeds, plan.lengths, cache, options, adaption)
    hidden = yield from collect(pieces, plan.lengths, options.tail)
    labels = batch.labels
    if labels is not None:
        labels = labels.gather(1, plan.index).masked_fill(plan.rank >= 0, IGNORE)
        labels = ignore_pads(labels, plan.lengths)
    if cache is not None:
        cache.kept = kept
    return Passage(batch, hidden, plan.lengths, labels, cache, kept, scores, reading)


def read_twice(
    model: Any,
    batch: Batch,
    compression: CompressionConfig,
    cache: StateCache | None,
    options: PassOptions,
) -> Steps[Passage]:
    """Both stages over whole prompts; stage 2 reads the spliced sequence from zero states."""
    limit = torch.minimum(batch.document_lengths, batch.prompt_lengths - 1)
    span = span_bounds(batch.document_lengths, limit, compression)
    backbone = model.backbone
    reading = yield from _read_prompts(backbone, batch, span, None, options)
    if compression.placement == "append":
        at, removed = batch.prompt_lengths, torch.zeros_like(limit)
    else:
        at, removed = span.start, span.length

    def embeddings(index: Tensor) -> Tensor:
        return batch.take(backbone.embeddings, index)

    return (
        yield from _reread(
            model, batch, reading, compression, at, removed, cache, options, embeddings
        )
    )


def read_span(
    model: Any, batch: Batch, method: ReMamba, options: PassOptions
) -> Steps[tuple[DocumentMemory, Tensor | None]]:
    """Stage 1 over documents, for questions that come later."""
    span = span_bounds(batch.lengths, batch.lengths, method.compression)
    return (yield from read_documents(model.backbone, batch, span, method, options))


def answer(
    model: Any,
    batch: Batch,
    memory: DocumentMemory,
    compression: CompressionConfig,
    options: PassOptions,
) -> Steps[Passage]:
    """Stage 2 for questions on documents read before: it reads the K vectors and the question."""
    backbone = model.backbone
    states, document = states_for(batch, memory)
    nothing = torch.zeros_like(batch.lengths)
    no_span = Span(nothing, nothing)
    reading = yield from _read_prompts(backbone, batch, no_span, states.copy(), options)
    reading = reading._replace(hidden=memory.hidden.to(reading.last_hidden.dtype), span=memory.span)
    if compression.placement != "before_question":
        # [vectors; question] from zero states; a document without a span keeps its own
        keeps = (memory.span.length == 0)[document]
        if not bool(keeps.any()):
            states.reset()
        elif not bool(keeps.all()):
            states = states.scale_rows(to_device(keeps, batch.device))

    def embeddings(index: Tensor) -> Tensor:
        if memory.input_ids is None:
            raise InputError(
                "this memory was read from embeddings, and the model's residual value needs the "
                "document's tokens; read it again from token ids"
            )
        ids = memory.input_ids.gather(1, index.view(memory.batch_size, -1))
        return backbone.embeddings(ids.view(index.shape))

    return (
        yield from _reread(
            model, batch, reading, compression, nothing, nothing, states, options, embeddings
        )
    )
