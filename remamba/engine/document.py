"""A document that a reader knows: its text, its tokens, and the memory that stands for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from remamba.engine.answer import Answer, Ask, AskedMethod, shortened
from remamba.engine.sampling import SamplingOptions
from remamba.methods.base import Method
from remamba.methods.memory import DocumentMemory

if TYPE_CHECKING:
    from remamba.engine.reader import Reader


@dataclass(eq=False)
class Document:
    """A document as `Reader.read` and `Reader.load` return it, to be asked many questions.

    Where its settings allow it, it was read once, and its memory answers every question. With
    settings whose second stage reads the document again it is read anew for each question.
    """

    reader: Reader
    text: str
    """Empty for a memory that holds no tokens."""
    ids: list[int]
    offsets: list[tuple[int, int]]
    """(start, stop) in the text of each token; empty ranges for tokens that are no part of it."""
    method: Method
    """How it is read where an ask names no method."""
    memory: DocumentMemory | None = None
    """What the one reading left; None where each question needs a reading of its own."""
    seconds: float | None = None
    """Spent on reading it once for all questions; None when that was done elsewhere, or not."""

    def __len__(self) -> int:
        """How many tokens it has."""
        return len(self.ids) if self.ids or self.memory is None else int(self.memory.lengths[0])

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        how = f"{'to be read' if self.memory is None else 'read'} by {self.method.name}"
        return f"Document({shortened(self.text)!r}, {len(self):,} tokens, {how})"

    def ask(
        self,
        question: str,
        *,
        method: AskedMethod = None,
        options: SamplingOptions | None = None,
        template: str | None = None,
    ) -> Answer:
        """The answer to one question; see `Ask`, and `Reader.answer` for several at once.

        Raises:
            InputError: the question is empty, or the memory was read with other settings.
        """
        options = options or SamplingOptions()
        asked = Ask(self, question, method=method, options=options, template=template)
        return self.reader.answer([asked])[0]

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the memory, for `Reader.load` and `remamba ask --memory`.

        Args:
            dtype: of the span's states. None keeps the model's own, which is exact;
                torch.bfloat16 halves a float32 memory.

        Raises:
            InputError: no memory can stand for the document with its settings, or the file cannot
                be written.
        """
        memory = self.memory
        if memory is None:
            # the model tells why no memory can serve these settings
            memory = self.reader.read_memory(self.ids, self.method)
        memory.save(path, dtype)
