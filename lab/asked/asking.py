"""Many documents read at once, many questions asked of each: the model's side of a planted run.

A document's one reading serves all questions and all methods that need the document's states
alone (`serves_memory`); other methods read each question's whole prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.asked.evidence import evidence_ranks
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import end_tokens
from remamba.execution.decode import decode_step_of, runs_in_place
from remamba.execution.passes import PassOptions, not_finite
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.selection import Span, span_bounds
from remamba.model.rows import Batch, cut, enter
from remamba.model.states import StateCache
from remamba.modeling_remamba import ReMambaForCausalLM

WHOLE_DOCUMENT = ReMamba(CompressionConfig(length=1.0, keep_ratio=1.0))
"""Keeps the states of every position, from which each setting's span is cut."""
LOOK_EVERY = 8
"""New tokens between two looks at whether all answers have ended: a look waits for the GPU."""

Tokens = Sequence[int]
Spans = Sequence[tuple[int, int]]


class Answered(NamedTuple):
    """A continuation and what stage 1 made of the document."""

    tokens: list[int]
    """New ones, without the end of text."""
    kept: list[tuple[int, float]] | None = None
    """Position in what was read of the document, and score; None: plain Mamba."""
    span: tuple[int, int] | None = None
    """What was to be compressed; None: plain Mamba."""
    ranks: list[int | None] | None = None
    """Of each evidence, see `evidence_ranks`."""


@dataclass
class Times:
    """What a batch took: seconds of the whole batch, and the most memory in use (GPU only)."""

    documents: int = 0
    questions: int = 0
    read: float = 0.0
    first: float = 0.0
    """From the questions to the first token of each answer: with compression stage 2 is in it."""
    rest: float = 0.0
    peak_bytes: int | None = None

    def add(self, other: Times) -> None:
        """Another part of the same batch."""
        self.documents += other.documents
        self.questions += other.questions
        self.read += other.read
        self.first += other.first
        self.rest += other.rest
        if other.peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, other.peak_bytes)


class Reading(NamedTuple):
    """Documents in memory, and what that took."""

    documents: list[Tokens]
    memory: DocumentMemory | None
    """None: they were not read, since every prompt is read whole."""
    times: Times


@dataclass
class PlantedReader:
    """A model that reads documents together and answers greedily.

    Args:
        most_positions: of whole prompts that are read at once.
        piece_length: tokens that a pass reads at once; None leaves that to the model.
    """

    model: ReMambaForCausalLM
    tokenizer: Any
    most_positions: int
    piece_length: int | None = None
    _ends: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.model.eval()
        self._ends = end_tokens(self.model, self.tokenizer)

    @torch.inference_mode()
    def read(self, documents: Sequence[Tokens], with_states: bool = True) -> Reading:
        """Stage 1 over documents.

        Args:
            with_states: keep the last-layer states too, for methods that compress.
        """
        clock = _Clock(self.model.device)
        method = WHOLE_DOCUMENT if with_states else Plain()
        options = PassOptions(self.piece_length)
        memory, _ = method.read(self.model, self._batch(documents), options)
        times = Times(len(documents), 0, read=clock.lap())
        times.peak_bytes = clock.peak()
        return Reading(list(documents), memory, times)

    @torch.inference_mode()
    def answer(
        self,
        reading: Reading,
        questions: Sequence[Sequence[Tokens]],
        method: Method,
        new_tokens: int,
        evidence: Sequence[Sequence[Spans]] | None = None,
    ) -> tuple[list[list[Answered]], Times]:
        """Answers to each document's questions; all documents have as many.

        Args:
            evidence: token spans in each question's document, for `Answered.ranks`.
        """
        count = len(questions[0])
        assert all(len(asked) == count for asked in questions), "documents asked unequally often"
        rows = [question for asked in questions for question in asked]
        spans = None if evidence is None else [one for asked in evidence for one in asked]
        if reading.memory is not None and serves_all(method):
            found, times = self._of_memory(reading.memory, rows, method, new_tokens, spans)
        else:
            documents = [document for document in reading.documents for _ in range(count)]
            found, times = self._of_prompts(documents, rows, method, new_tokens, spans)
        times.documents = 0
        times.add(reading.times)
        return [found[i : i + count] for i in range(0, len(found), count)], times

    def _of_memory(
        self,
        memory: DocumentMemory,
        rows: list[Tokens],
        method: Method,
        new_tokens: int,
        evidence: list[Spans] | None,
    ) -> tuple[list[Answered], Times]:
        clock = _Clock(self.model.device)
        memory = _narrowed(memory, method)
        passage = method.answer(self.model, self._batch(rows), memory, self._how)
        return self._finish(passage, clock, new_tokens, evidence, len(rows) // memory.batch_size)

    def _of_prompts(
        self,
        documents: list[Tokens],
        questions: list[Tokens],
        method: Method,
        new_tokens: int,
        evidence: list[Spans] | None,
    ) -> tuple[list[Answered], Times]:
        """Each question behind its document as one prompt, as many at once as may be."""
        prompts = [[*d, *q] for d, q in zip(documents, questions, strict=True)]
        at_once = max(1, self.most_positions // max(map(len, prompts)))
        found: list[Answered] = []
        times = Times()
        for i in range(0, len(prompts), at_once):
            clock = _Clock(self.model.device)
            rows = slice(i, i + at_once)
            lengths = torch.tensor([len(question) for question in questions[rows]])
            batch, cache = self._batch(prompts[rows], lengths), self.model.new_cache()
            passage = method.prefill(self.model, batch, cache, self._how)
            some, part = self._finish(
                passage, clock, new_tokens, None if evidence is None else evidence[rows], 1
            )
            found += some
            times.add(part)
        return found, times

    @property
    def _how(self) -> PassOptions:
        return PassOptions(self.piece_length, tail=1)

    def _batch(self, rows: Sequence[Tokens], question_lengths: Tensor | None = None) -> Batch:
        mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        ids = torch.zeros_like(mask)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return enter(
            ids,
            mask,
            question_lengths=question_lengths,
            vocab_size=self.model.config.vocab_size,
            device=self.model.device,
        )

    def _finish(
        self,
        passage: Passage,
        clock: _Clock,
        new_tokens: int,
        evidence: list[Spans] | None,
        per_document: int,
    ) -> tuple[list[Answered], Times]:
        """From the last state of every row to its answer."""
        assert passage.cache is not None, "answers go on from the states"
        head = self.model.lm_head
        logits = head(passage.hidden[:, -1].to(head.weight.dtype))
        if not bool(torch.isfinite(logits).all()):
            raise not_finite("the logits of a prompt", self.model.dtype)
        drawn = logits.argmax(dim=-1)
        times = Times(0, len(logits), first=clock.lap())
        new = self._decode(drawn, passage.cache, new_tokens)
        times.rest = clock.lap()
        times.peak_bytes = clock.peak()
        if passage.kept is None or passage.reading is None or passage.scores is None:
            return [Answered(row) for row in new], times
        span = Span(*(ends.repeat_interleave(per_document) for ends in passage.reading.span))
        ranks: Sequence[list[int | None] | None] = [None] * len(new)
        if evidence is not None:
            ranks = evidence_ranks(passage.scores, span, evidence)
        places = zip(span.start.tolist(), span.stop.tolist(), strict=True)
        rows = zip(new, passage.kept.rows(), places, ranks, strict=True)
        return [Answered(*row) for row in rows], times

    def _decode(self, drawn: Tensor, cache: StateCache, new_tokens: int) -> list[list[int]]:
        """Greedy tokens of each row from the first one on, up to the end of text."""
        ends = torch.tensor(sorted(self._ends), device=drawn.device, dtype=drawn.dtype)
        tokens, has_ended = [drawn], torch.isin(drawn, ends)
        for i in range(1, new_tokens):
            if i % LOOK_EVERY == 0 and bool(has_ended.all()):
                break
            tokens.append(self._logits(tokens[-1], cache).argmax(dim=-1))
            has_ended |= torch.isin(tokens[-1], ends)
        found = torch.stack(tokens, dim=1).tolist()
        cuts = [next((i for i, t in enumerate(row) if t in self._ends), len(row)) for row in found]
        return [row[:stop] for row, stop in zip(found, cuts, strict=True)]

    def _logits(self, tokens: Tensor, cache: StateCache) -> Tensor:
        """(b, vocab) behind one more token (b,) of each row; nothing is asked of the device."""
        if runs_in_place(self.model):
            return decode_step_of(self.model).logits(tokens, cache)
        backbone, head = self.model.backbone, self.model.lm_head
        hidden = backbone(backbone.embeddings(tokens.unsqueeze(1)), cache=cache)
        return head(hidden[:, 0].to(head.weight.dtype))


def serves_all(method: Method) -> bool:
    """Whether one reading of a whole document serves the method, whatever else it serves."""
    return isinstance(method, Plain | ReMamba) and method.serves_memory


def _narrowed(memory: DocumentMemory, method: Method) -> DocumentMemory:
    """The memory as this method would have read it: with the states of its span alone."""
    if not isinstance(method, ReMamba):
        return memory
    span = span_bounds(memory.lengths, memory.lengths, method.compression)
    hidden = memory.hidden
    width = int(span.length.max())
    hidden = cut(hidden, span.start, width) if width else hidden[:, :0]
    return dataclasses.replace(memory, hidden=hidden, span=span, method=method)


class _Clock:
    """Seconds between laps, each when the device is done, and the memory in use meanwhile."""

    def __init__(self, device: torch.device):
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since = time.perf_counter()

    def lap(self) -> float:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        since, self._since = self._since, time.perf_counter()
        return self._since - since

    def peak(self) -> int | None:
        return None if self._device is None else torch.cuda.max_memory_allocated(self._device)
