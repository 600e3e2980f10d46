"""From an ask to a request: what words choose of a document; and back, from tokens to an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from remamba.engine.answer import Answer, TextRange
from remamba.engine.document import Document
from remamba.engine.engine import TextIterator
from remamba.engine.kept_words import kept_words
from remamba.engine.request import Completion, Request
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.bm25 import Bm25
from remamba.methods.chunks import Chunks
from remamba.methods.memory import DocumentMemory
from remamba.methods.shorten import Shorten


def serves(memory: DocumentMemory, method: Method) -> bool:
    """Whether a memory can answer what is asked by a method, or its text has to be read anew."""
    return serves_by(memory.method, method)


def serves_by(read: Method, method: Method) -> bool:
    """Whether a memory that one method has read can answer what is asked by another."""
    if not method.serves_memory:
        return False
    return method == read or not any(
        isinstance(each, Shorten | Chunks) or each.has_rule for each in (method, read)
    )


def left_by_words(document: Document, question: str, method: Bm25) -> list[int]:
    """The tokens of a document that BM25 leaves, its opening among them."""
    if not document.text:
        raise InputError(
            "the method bm25 chooses by words, and this memory holds no text; give the document"
        )
    opening = document.opening
    found = method.excerpt(document.text, document.offsets[opening:], question).tokens
    return [*range(opening), *(place + opening for place in found)]


class Made(NamedTuple):
    """A request, and what its answer is made with."""

    request: Request
    document: Document
    """Whose text the kept words are words of."""
    method: Method | None = None
    """How the document is read, choices by words included; None: as the request says."""
    left: list[int] | None = None
    """Those of its tokens that are read, where words chose them."""
    chunks: Sequence[tuple[int, int]] = ()
    """(first, end) tokens of the chunks in the request's memory."""

    def answer(self, done: Completion) -> Answer:
        """A completion with the kept words of the text it was made from."""
        kept, document = self._kept(done), self.document
        method = self.method or self.request.method
        assert isinstance(method, Method), "requests of a reader name their method"
        return Answer(
            text=done.text,
            kept=None if kept is None else tuple(kept_words(document.text, document.offsets, kept)),
            seconds=done.seconds,
            method=method.name,
            finish_reason=done.finish_reason,
            prompt_tokens=done.prompt_tokens,
            token_ids=done.token_ids,
            kept_tokens=kept,
            scored=done.scored,
            passages=self._passages(done),
        )

    def _kept(self, done: Completion) -> list[tuple[int, float]] | None:
        """Position and score of each kept token, in the document as it is known."""
        document, memory = self.document, self.request.memory
        if done.kept is not None and self.left is not None:
            return [(self.left[at], score) for at, score in done.kept]
        if done.kept is None or memory is None or not isinstance(memory.method, Shorten):
            return done.kept
        whole = torch.tensor([len(document.ids)])
        if int(memory.lengths[0]) == int(whole):
            return done.kept
        span = memory.method.left_out(whole, whole)
        start, length = int(span.start), int(span.length)
        return [(at if at < start else at + length, score) for at, score in done.kept]

    def _passages(self, done: Completion) -> tuple[TextRange, ...] | None:
        """What was chosen of the document."""
        if done.chunk is not None:
            return (self.document.text_range(*self.chunks[done.chunk]),)
        if self.left is None:
            return None
        runs: list[list[int]] = []
        for place in self.left[self.document.opening :]:
            if runs and place == runs[-1][1]:
                runs[-1][1] = place + 1
            else:
                runs.append([place, place + 1])
        return tuple(self.document.text_range(*run) for run in runs)


class AnswerStream:
    """An answer's text, piece by piece as it becomes final; leaving off early cancels it."""

    def __init__(self, text: TextIterator, finish: Callable[[Completion], Answer]):
        self._text = text
        self._finish = finish

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        return next(self._text)

    @property
    def answer(self) -> Answer | None:
        """The whole answer; None until it is there."""
        done = self._text.completion
        return None if done is None else self._finish(done)

    def close(self) -> None:
        """Leave off."""
        self._text.close()
