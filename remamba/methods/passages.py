"""A document shortened before it is read: its last tokens, its middle cut out, its best passages.

Plain functions of a text and of where its tokens lie in it (`remamba.text.encode`). What a method
or an evaluation calls `last`, `middle` or `bm25` is what stands here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

K1, B = 1.5, 0.75
"""How soon a word that occurs again counts no more, and how much less a long unit's words count.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), section
3.5, find 1.2 < k1 < 2 and 0.5 < b < 0.8 reasonable in many circumstances.
"""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Chinese and Japanese, which put no space between words: each character is one."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_NO_SPACE = re.compile(r"\S+")
_BLANK_LINES = re.compile(r"\r?\n(?:[^\S\n]*\n)+")
_SENTENCE_END = re.compile(
    r"(?:[.!?…।؟۔]+[\"'”’»)\]]*(?=\s)|[。！？｡]+[」』”’）\"']*|(?=\n))[^\S\n]*\n*"
)

Places = Sequence[tuple[int, int]]
"""(start, stop) characters of each token of a text, in the text's order."""
Span = tuple[int, int]
Item = TypeVar("Item")


class Excerpt(NamedTuple):
    """What is left of a document, and where it stood."""

    text: str
    spans: list[tuple[int, int]]
    """(start, stop) characters of the document, ascending; what they hold, joined, is the text."""
    tokens: list[int]
    """Which of the document's tokens are left, ascending."""


def last(text: str, offsets: Places, count: int) -> Excerpt:
    """The last `count` tokens of a document; all of one that has no more.

    A character of which only some tokens are left is no part of the text.
    """
    if len(offsets) <= count:
        return _whole(text, offsets)
    return _excerpt(text, offsets, [(len(offsets) - count, len(offsets))])


def middle(text: str, offsets: Places, count: int) -> Excerpt:
    """A document whose middle is cut out; all of one that has no more than `count` tokens.

    See `without_middle`. A character of which only some tokens are left is no part of the text.
    """
    if len(offsets) <= count:
        return _whole(text, offsets)
    half = count // 2
    return _excerpt(text, offsets, [(0, half), (len(offsets) - half, len(offsets))])


def without_middle(tokens: Sequence[Item], count: int) -> Sequence[Item]:
    """The first and the last `count` // 2 tokens of more than `count`; the same object if not.

    It is the cut of LongBench and of the paper's authors: an odd count loses one.
    """
    half = count // 2
    if len(tokens) <= count:
        return tokens
    return [*tokens[:half], *tokens[len(tokens) - half :]]


class Unit(NamedTuple):
    """A paragraph, a sentence, or a part of one: what is searched and kept as a whole."""

    start: int
    """First character."""
    stop: int
    first: int
    """First token."""
    end: int


def split_units(text: str, offsets: Places, most: int) -> list[Unit]:
    """The units of a document, each of at most `most` tokens, with white space between them.

    They are its paragraphs, which blank lines part. A paragraph of more than `most` tokens is taken
    apart into its sentences (a line's end is a sentence's, too), such a sentence into runs of
    words, and a word as long as that into runs of characters.
    """
    starts = [start for start, _ in offsets]
    ends = list(accumulate((stop for _, stop in offsets), max))

    def size(start: int, stop: int) -> int:
        return bisect_left(starts, stop) - bisect_right(ends, start)

    def fitting(part: Span, *breaks: re.Pattern[str]) -> Iterator[Span]:
        if size(*part) <= most:
            yield part
        elif breaks:
            for smaller in _parts(text, part, breaks[0]):
                yield from fitting(smaller, *breaks[1:])
        else:
            yield from runs(part)

    def runs(sentence: Span) -> Iterator[Span]:
        run: Span | None = None
        for match in _NO_SPACE.finditer(text, *sentence):
            for start, stop in pieces(match.span()):
                if run is not None and size(run[0], stop) > most:
                    yield run
                    run = None
                run = (start if run is None else run[0], stop)
        if run is not None:
            yield run

    def pieces(word: Span) -> Iterator[Span]:
        start, end = word
        while size(start, end) > most:
            first = bisect_right(ends, start)
            _, stop = _characters(text, offsets, first, first + most)
            if start < stop:
                yield start, stop
            # a character of more tokens than fit is left out
            start = stop if start < stop else ends[first]
        if start < end:
            yield start, end

    units: list[Unit] = []
    for part in _parts(text, (0, len(text)), _BLANK_LINES):
        for start, stop in fitting(part, _SENTENCE_END):
            first = max(bisect_right(ends, start), units[-1].end if units else 0)
            units.append(Unit(start, stop, first, max(first, bisect_left(starts, stop))))
    return units


def split_chunks(text: str, offsets: Places, most: int) -> list[Span]:
    """(first, end) tokens of each chunk, which together are the whole document, without overlap.

    A chunk is as many neighbouring units as fit into `most` tokens (see `split_units`); the white
    space before a unit belongs to its chunk.
    """
    chunks: list[Span] = []
    start = end = 0

    def cut_to(stop: int) -> None:
        """Leave no more than `most` tokens up to `stop` open."""
        nonlocal start
        if stop - start > most and start < end:
            chunks.append((start, end))
            start = end
        while stop - start > most:  # white space that alone is more
            chunks.append((start, start + most))
            start += most

    for unit in split_units(text, offsets, most):
        cut_to(unit.end)
        end = unit.end
    cut_to(len(offsets))
    if start < len(offsets):
        chunks.append((start, len(offsets)))
    return chunks


def _parts(text: str, whole: Span, pattern: re.Pattern[str]) -> Iterator[Span]:
    """What lies between and up to the matches of a pattern, without the white space at its end."""
    start = whole[0]
    for stop in [*(match.end() for match in pattern.finditer(text, *whole)), whole[1]]:
        if part := text[start:stop].rstrip():
            yield start, start + len(part)
        start = stop


class Passages:
    """A document's units, ready to be searched by BM25.

    See `split_units`.

    Args:
        offsets: where the document's tokens lie.
        count: the budget: how many of these tokens are left, at least 1.
    """

    def __init__(self, text: str, offsets: Places, count: int):
        assert count >= 1, count
        self._text, self._offsets, self._count = text, offsets, count
        self.units = split_units(text, offsets, count)
        self._bm25 = BM25([text[unit.start : unit.stop] for unit in self.units])

    def ranking(self, query: str) -> list[int]:
        """The numbers of all units, the best for a query first; of equals the earlier one."""
        scores = self._bm25.scores(query)
        return sorted(range(len(scores)), key=lambda i: (-scores[i], i))

    def best(self, query: str) -> Excerpt:
        """The units that BM25 ranks first for a query, in the document's order.

        From the best on, each unit is taken that still fits. Two units
        are joined by what stands behind the first of them in the document, which counts, too.
        """
        if len(self._offsets) <= self._count:
            return _whole(self._text, self._offsets)
        units = self.units
        # behind a unit comes the gap before the next one
        gaps = [after.first - unit.end for unit, after in pairwise(units)]
        gaps.append(0)
        room, final = self._count, -1
        taken: list[int] = []
        for i in self.ranking(query):
            gap = gaps[i] if i < final else gaps[final] if taken else 0
            if (size := units[i].end - units[i].first + gap) <= room:
                taken.append(i)
                room -= size
                final = max(final, i)
        return self._joined(sorted(taken))

    def _joined(self, taken: Sequence[int]) -> Excerpt:
        """The units of these numbers with the gaps behind all but the last of them."""
        spans: list[tuple[int, int]] = []
        tokens: list[int] = []
        for i in taken:
            unit = self.units[i]
            after = self.units[i + 1] if i != taken[-1] else Unit(unit.stop, 0, unit.end, 0)
            tokens += range(unit.first, after.first)
            if spans and spans[-1][1] == unit.start:
                spans[-1] = (spans[-1][0], after.start)
            else:
                spans.append((unit.start, after.start))
        return Excerpt(_joined_text(self._text, spans), spans, tokens)


class BM25:
    """Texts to be searched by Robertson's BM25 with `K1` and `B`.

    Words are runs of letters and digits without regard to case; in Chinese and Japanese each
    character is a word. A word that n of N texts hold weighs ln(1 + (N - n + 0.5) / (n + 0.5)),
    which the 1 keeps above zero.
    """

    def __init__(self, texts: Sequence[str]):
        self._counts = [Counter(_words(text)) for text in texts]
        self._holding = Counter(word for count in self._counts for word in count)
        lengths = [count.total() for count in self._counts]
        mean = sum(lengths) / max(len(lengths), 1) or 1.0
        self._shares = [K1 * (1 - B + B * length / mean) for length in lengths]

    def scores(self, query: str) -> list[float]:
        """One for each text: 0 where none of the query's words stands, higher is better."""
        scores = [0.0] * len(self._counts)
        for word in sorted(set(_words(query))):
            holding = self._holding[word]
            weight = math.log(1 + (len(scores) - holding + 0.5) / (holding + 0.5))
            for i, (count, share) in enumerate(zip(self._counts, self._shares, strict=True)):
                if found := count[word]:
                    scores[i] += weight * found * (K1 + 1) / (found + share)
        return scores


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _whole(text: str, offsets: Places) -> Excerpt:
    return Excerpt(text, [(0, len(text))] if text else [], list(range(len(offsets))))


def _excerpt(text: str, offsets: Places, ranges: Sequence[tuple[int, int]]) -> Excerpt:
    """What ranges of tokens hold."""
    spans = [_characters(text, offsets, *tokens) for tokens in ranges]
    spans = [span for span in spans if span[0] < span[1]]
    tokens = [token for first, end in ranges for token in range(first, end)]
    return Excerpt(_joined_text(text, spans), spans, tokens)


def _joined_text(text: str, spans: Sequence[Span]) -> str:
    return "".join(text[start:stop] for start, stop in spans)


def _characters(text: str, offsets: Places, first: int, end: int) -> Span:
    """The whole characters of tokens `first` to `end`; white space goes with the token behind it.

    Some tokenizers leave that space out of a token's place.
    """
    start = offsets[first - 1][1] if first else 0
    if end == len(offsets):
        return start, len(text)
    return start, min(offsets[end - 1][1], offsets[end][0]) if end else 0
