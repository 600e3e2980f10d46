"""A document that a reader knows: its text, its tokens, and the memory that stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from remamba.engine.answer import Answer, Ask, AskedMethod, TextRange, shortened
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.chunks import Chunks
from remamba.methods.memory import DocumentMemory
from remamba.methods.passages import split_chunks

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
    opening: int = 0
    """How many of its tokens stand before what may be chosen: a bos, and an ask's prefix."""
    _chunks: dict[int, list[tuple[int, int]]] = field(default_factory=dict, repr=False)
    _read: dict[tuple[int, int], DocumentMemory] = field(default_factory=dict, repr=False)
    """The states of single chunks that were read for some question."""

    def chunks(self, tokens: int) -> list[tuple[int, int]]:
        """(first, end) of each chunk of at most so many tokens; the opening is in none.

        Those of a memory of chunks are its own.
        """
        memory, opening = self.memory, self.opening
        if memory is not None and isinstance(memory.method, Chunks):
            if memory.method.tokens != tokens and not self.text:
                raise InputError(
                    f"the memory has chunks of {memory.method.tokens} tokens, not of {tokens}, and "
                    "no text to be cut anew; read the document again"
                )
            if memory.method.tokens == tokens:
                ends = (memory.lengths - opening).cumsum(0) + opening
                starts = ends - (memory.lengths - opening)
                return list(zip(starts.tolist(), ends.tolist(), strict=True))
        if tokens not in self._chunks:
            found = split_chunks(self.text, self.offsets[opening:], tokens)
            self._chunks[tokens] = [(first + opening, end + opening) for first, end in found]
        return self._chunks[tokens]

    def chunk_rows(self, ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
        """The tokens of chunks, each behind the document's opening."""
        begins = self.ids[: self.opening]
        return [[*begins, *self.ids[first:end]] for first, end in ranges]

    def chunk_memory(self, method: Chunks, which: Sequence[int] | None = None) -> DocumentMemory:
        """The states behind some of its chunks (None: all); what is known is not read again."""
        held = self.memory
        had = None if held is None else held.method
        if held is not None and isinstance(had, Chunks) and had.tokens == method.tokens:
            return held if which is None else held.select(torch.tensor(which))
        ranges = self.chunks(method.tokens)
        wanted = [ranges[number] for number in (range(len(ranges)) if which is None else which)]
        if missing := [one for one in wanted if one not in self._read]:
            read = self.reader.read_rows(self.chunk_rows(missing), method)
            for row, place in enumerate(missing):
                self._read[place] = read.select(torch.tensor([row]))
        found = DocumentMemory.side_by_side([self._read[one] for one in wanted])
        found.method = method
        return found

    def text_range(self, first: int, end: int) -> TextRange:
        """The text of the tokens from `first` on and before `end`."""
        places = [place for place in self.offsets[first:end] if place[0] < place[1]]
        start, stop = (places[0][0], places[-1][1]) if places else (0, 0)
        return TextRange(self.text[start:stop], start, stop)

    def __len__(self) -> int:
        """How many tokens it has."""
        return len(self.ids) if self.ids or self.memory is None else int(self.memory.lengths.sum())

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
            memory = self.reader.read_document(self, self.method)
        memory.save(path, dtype)
