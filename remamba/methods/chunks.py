"""`chunks`: the document's chunks are read apart, and the answer goes on from the surest of them.

This is OPRM (Ben-Kish et al., "Overflow Prevention Enhances Long-Context Recurrent LLMs", arXiv
2505.07793): a state that has read one chunk alone has not been overwritten by the others. With p_i
the probabilities of the first new token behind chunk i and the question, the answer is decoded from
the states of chunk argmin_i E_i alone, E_i = -sum_v p_i(v) log p_i(v). No training is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import READ_AT_ONCE, PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain, read_plain
from remamba.model.layers import vocabulary_logits
from remamba.model.rows import IGNORE, Batch
from remamba.model.states import StateCache

CHOICES = ("entropy", "random")
LEAST_TOKENS = 32
"""A chunk of fewer tokens is refused: it holds no sentence and question's worth of context."""
ASKED_AT_ONCE = 16
"""Chunks that one question is asked of at one time: each has a copy of the states."""


@dataclass(frozen=True)
class Chunks(Method):
    """Chunks of the document read apart; the answer comes from one of them."""

    name = "chunks"

    tokens: int = 500
    """The most that a chunk has. A Reader cuts at the ends of paragraphs or sentences, a model
    that is given token ids after every so many tokens."""
    candidates: int | None = None
    """Only so many chunks are asked: those that BM25 ranks first by the question's words, for which
    a Reader is needed. None: all."""
    choice: str = "entropy"
    """entropy: the chunk whose first new token is the surest; random: any, as a control."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < LEAST_TOKENS:
            raise InputError(
                f"the method chunks with tokens = {self.tokens!r}: give a number from "
                f"{LEAST_TOKENS} on"
            )
        if self.candidates is not None and self.candidates < 1:
            raise InputError(
                f"the method chunks with candidates = {self.candidates!r}: give a number from 1 "
                "on, or None for all chunks"
            )
        if self.choice not in CHOICES:
            raise InputError(
                f"the method chunks with choice = {self.choice!r}: choose one of "
                f"{', '.join(CHOICES)}"
            )

    @property
    def serves_memory(self) -> bool:
        return True

    @property
    def needs_text(self) -> bool:
        return self.candidates is not None

    @property
    def draws(self) -> bool:
        return self.choice == "random"

    def in_words(self) -> str:
        first = "all of them"
        if self.candidates is not None:
            first = f"the {self.candidates} that BM25 ranks first"
        how = "the surest first token" if self.choice == "entropy" else "chance"
        return (
            f"The document is read in chunks of at most {self.tokens} tokens; {first} are asked, "
            f"and {how} decides which one answers (chunks)."
        )

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        self._check_ids()
        documents, questions = batch.split()
        found = []
        for row in range(batch.rows):
            memory = yield from self._read_row(model, documents, row, options)
            question = questions.select(torch.tensor([row]))
            found.append((yield from self.answer(model, question, memory, options)))
        return _side_by_side(questions, found, cache)

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        self._check_ids()
        if documents.rows != 1:
            raise InputError(
                f"a memory of chunks holds one document, and {documents.rows} are given: read them "
                "one by one"
            )
        return (yield from self._read_row(model, documents, 0, options)), None

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        """The states behind each question; every question is asked of all chunks in the memory."""
        if options.layers is not None:
            raise InputError(
                "output_hidden_states=True: the method chunks reads every chunk by itself, so "
                "there is no one sequence to tell them of; use another method"
            )
        if not isinstance(memory.method, Chunks):
            raise InputError(
                f"the memory was read by the method {memory.method.name}, and chunks needs one of "
                "chunks; read the document again"
            )
        found = []
        for row in range(questions.rows):
            question = questions.select(torch.tensor([row]))
            found.append((yield from self._ask(model, question, memory, options)))
        return _side_by_side(questions, found, StateCache(len(model.backbone.layers)))

    def _check_ids(self) -> None:
        if self.needs_text:
            raise InputError(
                f"the method chunks with candidates = {self.candidates} ranks chunks by their "
                "words, and token ids have none: ask a remamba.Reader, or give candidates=None"
            )

    def _read_row(
        self, model: Any, documents: Batch, row: int, options: PassOptions
    ) -> Steps[DocumentMemory]:
        length = int(documents.lengths[row])
        start = torch.arange(0, length, self.tokens)
        rows = documents.select(torch.full_like(start, row))
        chunks = rows.part(start, (start + self.tokens).clamp(max=length))
        return (yield from read_chunks(model, chunks, self, options))

    def _ask(
        self, model: Any, question: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        """One question: the states behind it of the chunk that is chosen."""
        count = memory.batch_size
        if self.choice == "random":
            chunk = int(torch.randint(count, ()))
            return (yield from _of_chunk(model, question, memory, chunk, options))
        best: _Best | None = None
        for first in range(0, count, ASKED_AT_ONCE):
            index = torch.arange(first, min(first + ASKED_AT_ONCE, count))
            rows = question.select(torch.zeros_like(index))
            states = memory.cache.select(index.to(memory.hidden.device))
            passage = yield from read_plain(model.backbone, rows, states, options)
            unsure = entropy(_logits(model, passage.hidden[:, -1])).detach()
            row = int(unsure.argmin())
            # what is not finite is chosen, so that it is told
            if best is None or not float(unsure[row]) >= best.entropy:
                kept = torch.tensor([row])
                best = _Best(
                    float(unsure[row]), first + row, passage.hidden[row : row + 1],
                    states.select(kept.to(memory.hidden.device)),
                )  # fmt: skip
        assert best is not None, "a document has a chunk"
        return Passage(
            question, best.hidden, question.lengths, question.labels, best.cache,
            chosen=torch.tensor([best.chunk]),
        )  # fmt: skip


class _Best(NamedTuple):
    """The surest chunk so far."""

    entropy: float
    chunk: int
    hidden: Tensor
    cache: StateCache


def _of_chunk(
    model: Any, question: Batch, memory: DocumentMemory, chunk: int, options: PassOptions
) -> Steps[Passage]:
    index = torch.tensor([chunk])
    states = memory.cache.select(index.to(memory.hidden.device))
    passage = yield from read_plain(model.backbone, question, states, options)
    passage.chosen = index
    return passage


def read_chunks(
    model: Any, chunks: Batch, method: Chunks, options: PassOptions
) -> Steps[DocumentMemory]:
    """The memory of one document: the states behind each of its chunks, one row each.

    Rows are read side by side, as many at once as one piece has positions.
    """
    at_once = max(1, (options.piece_length or READ_AT_ONCE) // chunks.width)
    parts = []
    for first in range(0, chunks.rows, at_once):
        rows = chunks.select(torch.arange(first, min(first + at_once, chunks.rows)))
        rows = rows.part(torch.zeros_like(rows.lengths), rows.lengths)
        parts.append((yield from Plain().read(model, rows, options.for_reading))[0])
    memory = DocumentMemory.side_by_side(parts)
    memory.method = method
    return memory


def entropy(logits: Tensor) -> Tensor:
    """(b,) -sum_v p(v) log p(v) of p = softmax(logits (b, vocab)), float32 at least, in nats."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)


def _logits(model: Any, hidden: Tensor) -> Tensor:
    head = getattr(model, "lm_head", None)
    if head is None:
        raise InputError(
            "the method chunks chooses by the first token's probabilities, and this model has no "
            "language-model head: use ReMambaForCausalLM"
        )
    return vocabulary_logits(head, hidden)


def _side_by_side(questions: Batch, found: list[Passage], cache: StateCache | None) -> Passage:
    """The passages of single rows as one, padded on the right."""
    width = max(passage.hidden.shape[1] for passage in found)
    hidden = torch.cat(
        [torch.nn.functional.pad(p.hidden, (0, 0, 0, width - p.hidden.shape[1])) for p in found]
    )
    if cache is not None:
        caches = [passage.cache for passage in found]
        cache.assign(StateCache.side_by_side([c for c in caches if c is not None]))
    chosen = torch.cat([passage.chosen for passage in found if passage.chosen is not None])
    labels = questions.labels
    if labels is not None and labels.shape[1] < width:
        labels = torch.nn.functional.pad(labels, (0, width - labels.shape[1]), value=IGNORE)
    return Passage(questions, hidden, questions.lengths, labels, cache, chosen=chosen)
