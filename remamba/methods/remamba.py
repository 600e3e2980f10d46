"""The two stages: read, keep, splice, read again; functions over a backbone and a compressor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.execution.passes import PassOptions, Window, collect, gather_windows, run_pass
from remamba.methods.memory import DocumentMemory
from remamba.methods.selection import Compressor, Kept, Span, num_kept, span_bounds
from remamba.methods.splice import plan_adaption, plan_splice, spliced_embeds
from remamba.model.backbone import Backbone
from remamba.model.rows import IGNORE, Batch, ignore_pads, to_device
from remamba.model.states import StateCache


class Reading(NamedTuple):
    """Stage 1: the states that the selection and stage 2 need."""

    hidden: Tensor
    """(documents, m, d) of the span [h_i]."""
    span: Span
    """of the documents."""
    last_hidden: Tensor
    """(b, d) of the last prompt token [h_L]."""
    everything: Tensor | None
    """(b, l, d) of all positions, if PassOptions.with_stage1."""


@dataclass
class Passage:
    """The last stage's states and how their positions relate to the rows given."""

    batch: Batch
    """The rows that the last stage continued: the prompts, or the questions alone."""
    hidden: Tensor
    """(b, l', d)."""
    lengths: Tensor
    """(b,) real positions; on the host."""
    labels: Tensor | None
    """(b, l') where they stand now."""
    cache: StateCache | None
    kept: Kept | None = None
    scores: Tensor | None = None
    """(b, m) importance scores over the span."""
    reading: Reading | None = None


def read_plain(
    backbone: Backbone, batch: Batch, cache: StateCache | None, how: PassOptions
) -> Passage:
    """One pass of plain Mamba, from the cache's states if it has any."""
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, batch.lengths, cache, how)
    hidden = collect(pieces, batch.lengths, how.tail)
    return Passage(batch, hidden, batch.lengths, batch.labels, cache)


def read_on(backbone: Backbone, batch: Batch, cache: StateCache, how: PassOptions) -> Passage:
    """Plain Mamba goes on from a filled cache, whose pending token is read before the rows."""
    text = cache.text
    if text is None:
        return read_plain(backbone, batch, cache, how)
    if bool((text.behind_end > 0).any()):
        row = int((text.behind_end > 0).nonzero()[0])
        raise InputError(
            f"cache_params cannot go on with row {row}: it ended before other rows of its batch, "
            f"and its states have read {int(text.behind_end[row])} tokens of padding since; "
            "generate it by itself, or cut the finished rows out with cache_params.select(rows)"
        )
    longer, cache.text = batch.behind(text.pending, backbone.embeddings), None
    embeds = longer.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, longer.lengths, cache, how)
    hidden = collect(pieces, longer.lengths, how.tail)
    if not how.tail:
        hidden = hidden[:, text.pending.shape[1] :]
    return Passage(batch, hidden, batch.lengths, batch.labels, cache)


def _read_prompts(
    backbone: Backbone, batch: Batch, span: Span, cache: StateCache | None, how: PassOptions
) -> Reading:
    """Stage 1 over prompts: the answer is read only if stage 1's own loss is wanted."""
    lengths = batch.lengths if how.with_stage1 else batch.prompt_lengths
    windows = [Window(span.start, int(span.length.max())), Window(batch.prompt_lengths - 1, 1)]
    if how.with_stage1:
        windows.append(Window(torch.zeros_like(lengths), int(lengths.max())))
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, lengths, cache, how)
    hidden, last, *everything = gather_windows(pieces, *windows)
    return Reading(hidden, span, last[:, 0], everything[0] if everything else None)


def _reread(
    backbone: Backbone,
    compressor: Compressor,
    batch: Batch,
    reading: Reading,
    compression: CompressionConfig,
    at: Tensor,
    removed: Tensor,
    cache: StateCache | None,
    how: PassOptions,
    embeddings: Callable[[Tensor], Tensor],
) -> Passage:
    """Selection and stage 2: K vectors go in at `at`, in place of `removed` tokens."""
    scores = compressor.scores(reading.hidden, reading.last_hidden)
    kept = compressor.keep(reading.hidden, scores, reading.span, compression, embeddings)
    rows = num_kept(reading.span, compression).repeat_interleave(batch.rows // len(reading.hidden))
    plan = plan_splice(batch.lengths, at, removed, rows).to(batch.device)
    adaption = plan_adaption(plan, kept, compression)
    embeds = spliced_embeds(batch, backbone.embeddings, plan, kept)
    pieces = run_pass(backbone, embeds, plan.lengths, cache, how, adaption)
    hidden = collect(pieces, plan.lengths, how.tail)
    labels = batch.labels
    if labels is not None:
        labels = labels.gather(1, plan.index).masked_fill(plan.rank >= 0, IGNORE)
        labels = ignore_pads(labels, plan.lengths)
    if cache is not None:
        cache.kept = kept
    return Passage(batch, hidden, plan.lengths, labels, cache, kept, scores, reading)


def read_twice(
    backbone: Backbone,
    compressor: Compressor,
    batch: Batch,
    compression: CompressionConfig,
    cache: StateCache | None,
    how: PassOptions,
) -> Passage:
    """Prompts in one part: stage 1 over all of each, stage 2 over its splice from zero states."""
    limit = torch.minimum(batch.document_lengths, batch.prompt_lengths - 1)
    span = span_bounds(batch.document_lengths, limit, compression)
    reading = _read_prompts(backbone, batch, span, None, how)
    if compression.placement == "append":
        at, removed = batch.prompt_lengths, torch.zeros_like(limit)
    else:
        at, removed = span.start, span.length

    def embeddings(index: Tensor) -> Tensor:
        return batch.take(backbone.embeddings, index)

    return _reread(
        backbone, compressor, batch, reading, compression, at, removed, cache, how, embeddings
    )


def read_documents(
    backbone: Backbone, batch: Batch, compression: CompressionConfig | None, how: PassOptions
) -> tuple[DocumentMemory, Tensor | None]:
    """Stage 1 over documents, for questions to come.

    PassOptions.with_stage1 adds the states of all positions, (b, l, d).
    """
    nothing = torch.zeros_like(batch.lengths)
    if compression is None:
        span = Span(nothing, nothing.clone())
    else:
        span = span_bounds(batch.lengths, batch.lengths, compression)
    cache = StateCache(len(backbone.layers))
    windows = [Window(span.start, int(span.length.max()))]
    if how.with_stage1:
        windows.append(Window(nothing, int(batch.lengths.max())))
    embeds = batch.embeds_of(backbone.embeddings)
    pieces = run_pass(backbone, embeds, batch.lengths, cache, how)
    hidden, *everything = gather_windows(pieces, *windows)
    memory = DocumentMemory(
        hidden, span, batch.lengths, cache, compression, input_ids=batch.input_ids
    )
    return memory, everything[0] if everything else None


def answer(
    backbone: Backbone,
    compressor: Compressor,
    batch: Batch,
    memory: DocumentMemory,
    compression: CompressionConfig | None,
    how: PassOptions,
) -> Passage:
    """Questions on documents read before: only the question and K vectors are read.

    Rows of questions are document-major: row i asks document i // (rows / documents).
    """
    if batch.rows % memory.batch_size:
        raise InputError(
            f"{batch.rows} rows of questions do not divide among the {memory.batch_size} documents "
            "of the memory"
        )
    document = torch.arange(batch.rows) // (batch.rows // memory.batch_size)
    states = memory.cache.copy()
    if batch.rows > memory.batch_size:
        states = states.select(to_device(document, batch.device))
    if compression is None:
        return read_plain(backbone, batch, states, how)
    nothing = torch.zeros_like(batch.lengths)
    reading = _read_prompts(backbone, batch, Span(nothing, nothing), states.copy(), how)
    reading = reading._replace(hidden=memory.hidden.to(reading.last_hidden.dtype), span=memory.span)
    if compression.placement != "before_question":
        # [vectors; question] from zero states; a document too short to compress keeps its own
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

    return _reread(
        backbone,
        compressor,
        batch,
        reading,
        compression,
        nothing,
        nothing,
        states,
        how,
        embeddings,
    )
