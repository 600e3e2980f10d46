"""`bm25`: the passages whose words fit the question best, read in place of the whole document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.passages import Excerpt, Passages, Places
from remamba.methods.plain import Plain


@dataclass(frozen=True)
class Bm25(Method):
    """The best passages by BM25, in the document's order, read by another method.

    See `remamba.methods.passages.Passages`: paragraphs, or sentences of a paragraph that is longer
    than the budget. Words are needed, so it is a Reader that chooses; a model alone refuses it.
    """

    name = "bm25"

    tokens: int = 500
    """How many of the document's tokens are left at most."""
    reader: Method = field(default_factory=Plain, kw_only=True)
    """The method that reads what is left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise InputError(
                f"the method bm25 with tokens = {self.tokens!r}: give a number from 1 on"
            )
        if self.reader.needs_text:
            raise InputError(
                f"the method bm25 is read by one that needs no words itself, and not by "
                f"{self.reader.to_dict()}"
            )

    @property
    def needs_text(self) -> bool:
        return True

    @property
    def serves_memory(self) -> bool:
        return False

    def check(self, model: Any) -> None:
        self.reader.check(model)

    @property
    def draws(self) -> bool:
        return self.reader.draws

    def in_words(self) -> str:
        behind = "" if isinstance(self.reader, Plain) else f" {self.reader.in_words()}"
        return (
            f"Only the passages that BM25 finds are read, {self.tokens} tokens at most (bm25)."
            f"{behind}"
        )

    def excerpt(self, text: str, offsets: Places, question: str) -> Excerpt:
        """What is read of a document for a question."""
        return Passages(text, offsets, self.tokens).best(question)

    def prefill(self, *_: Any) -> NoReturn:
        self._refuse()

    def read(self, *_: Any) -> NoReturn:
        self._refuse()

    def answer(self, *_: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "the method bm25 chooses by words, and token ids have none: ask a remamba.Reader with "
            "a document and a question"
        )


def best_of(texts: Sequence[str], question: str, count: int) -> list[int]:
    """The numbers of the `count` texts that BM25 ranks first, ascending; of equals the earlier."""
    from remamba.methods.passages import BM25

    scores = BM25(texts).scores(question)
    return sorted(sorted(range(len(texts)), key=lambda i: (-scores[i], i))[:count])
