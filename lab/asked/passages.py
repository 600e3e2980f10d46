"""The passages of a document that BM25 finds for a question."""

from __future__ import annotations

import re
from collections.abc import Sequence

from remamba.evals.bm25 import BM25

PASSAGE_TOKENS = 64
SENTENCE_END = re.compile(r"(?<=[.!?\n])[\"')\]]*\s+")


def split_passages(
    text: str, offsets: Sequence[tuple[int, int]], most: int = PASSAGE_TOKENS
) -> list[tuple[int, int]]:
    """A document in passages, each a range of its tokens; together they are all of them.

    Sentences (lines count as such) are joined as long as they are `most` tokens together; a longer
    one is cut.

    Args:
        offsets: (start, stop) characters of each token.
    """
    borders, token = [], 0
    for match in SENTENCE_END.finditer(text):
        # the space before a word belongs to its token, which so is the next sentence's
        while token < len(offsets) and offsets[token][1] <= match.end():
            token += 1
        borders.append(token)
    passages, start, end = [], 0, 0
    for border in [*borders, len(offsets)]:
        if border - start > most and end > start:
            passages.append((start, end))
            start = end
        while border - start > most:
            passages.append((start, start + most))
            start += most
        end = border
    return [*passages, (start, end)] if end > start else passages


class Passages:
    """A document's passages, ready to be searched.

    Args:
        offsets: (start, stop) characters of each token.
        most: tokens of a passage.
    """

    def __init__(self, text: str, offsets: Sequence[tuple[int, int]], most: int = PASSAGE_TOKENS):
        self.places = split_passages(text, offsets, most)
        self._bm25 = BM25([text[offsets[a][0] : offsets[b - 1][1]] for a, b in self.places])

    def best(self, query: str, room: int) -> list[int]:
        """Tokens of the passages that BM25 ranks first for a query, in the document's order.

        From the best on, each passage that still fits is taken while all are at most `room` tokens.
        """
        scores = self._bm25.scores(query)
        taken: list[tuple[int, int]] = []
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
            start, stop = self.places[i]
            if stop - start <= room:
                taken.append((start, stop))
                room -= stop - start
        return [token for start, stop in sorted(taken) for token in range(start, stop)]


def own_words(questions: Sequence[str]) -> list[str]:
    """Each question without the words that stand in all of them, which are the prompt's own.

    A question that would lose all its words keeps them.
    """
    split = [re.findall(r"\w+", question) for question in questions]
    shared = set.intersection(*({word.lower() for word in words} for words in split))
    if len(set(questions)) < 2:
        shared = set()
    kept = [[word for word in words if word.lower() not in shared] for words in split]
    return [" ".join(own or words) for own, words in zip(kept, split, strict=True)]
