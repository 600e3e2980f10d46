"""`twice`: the document and the question given twice, and read once (JRT-Prompt).

Arora et al., "Just read twice: closing the recall gap for recurrent language models" (arXiv
2407.05483): [document, question, document, question]. When the document comes again, the states
know what is asked. No training is needed; it costs twice the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import read_plain
from remamba.model.rows import Batch, cut
from remamba.model.states import StateCache


@dataclass(frozen=True)
class Twice(Method):
    """Document and question, then both once more, in one reading."""

    name = "twice"

    @property
    def serves_memory(self) -> bool:
        return False

    @property
    def wants_question(self) -> bool:
        return False

    def in_words(self) -> str:
        return "The whole prompt is given twice, one behind the other, and read once (twice)."

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        passage = yield from read_plain(model.backbone, batch.twice(), cache, options)
        if not options.tail:  # the given rows' own positions, which the caller knows
            passage.hidden = cut(passage.hidden, batch.prompt_lengths, batch.width)
        passage.labels, passage.lengths, passage.batch = batch.labels, batch.lengths, batch
        return passage

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        raise InputError(
            "the method twice reads the document behind its question, so that no memory can stand "
            "for it; ask document and question together"
        )

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        raise InputError(
            "the method twice reads the document behind its question, and a memory has read it "
            "before; give the document itself"
        )
