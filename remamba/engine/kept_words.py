"""Which words were kept: the selection as words, as places and as snippets of the document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORD_LIMIT = 40
"""Most letters of one word: scripts without spaces would give whole lines."""
SAME_SCORE = 1.6e-5
"""Scores of neighbours that differ by less are one score, lent backwards in a window, which takes
1e-6 from it with each position."""


@dataclass(frozen=True)
class KeptWord:
    """A word of the document with the tokens of it that were kept."""

    text: str
    start: int
    """Its first character in the document."""
    stop: int
    positions: tuple[int, ...]
    """Of its kept tokens, in the document (in the prompt, if there is no document)."""
    score: float
    """The highest of their scores."""


@dataclass(frozen=True)
class Place:
    """Kept words that stand next to one another and have one score."""

    words: tuple[KeptWord, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Of the kept tokens of all its words."""
        return tuple(position for word in self.words for position in word.positions)

    @property
    def score(self) -> float:
        """The highest of its words' scores."""
        return max(word.score for word in self.words)


@dataclass(frozen=True)
class Snippet:
    """A stretch of the document around kept words that stand near one another."""

    start: int
    stop: int
    words: tuple[KeptWord, ...]


def kept_words(
    text: str, offsets: Sequence[tuple[int, int]], kept: Sequence[tuple[int, float]]
) -> list[KeptWord]:
    """The words that the kept tokens are part of, in the order of the document.

    Args:
        text: the document.
        offsets: (start, stop) characters of each of its tokens. Kept tokens that stand for none
            (a bos), or lie beyond them, are left out.
        kept: position and score of each kept token, as a completion tells them.
    """
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for position, score in kept:
        start, stop = offsets[position] if position < len(offsets) else (0, 0)
        if start < stop:
            found.setdefault(_word_at(text, start, stop), []).append((position, score))
    return [
        KeptWord(
            text[start:stop],
            start,
            stop,
            tuple(position for position, _ in tokens),
            max(score for _, score in tokens),
        )
        for (start, stop), tokens in sorted(found.items())
    ]


def _word_at(text: str, start: int, stop: int) -> tuple[int, int]:
    """The word around a token; a token of signs or of white space stands for itself."""
    inner_start = start + len(text[start:stop]) - len(text[start:stop].lstrip())
    inner_stop = inner_start + len(text[start:stop].strip())
    if inner_start == inner_stop:
        return start, stop
    start, stop = inner_start, inner_stop
    while _is_letter(text[start : start + 1]) and _is_letter(text[start - 1 : start]):
        if stop - start >= WORD_LIMIT:
            break
        start -= 1
    while _is_letter(text[stop - 1 : stop]) and _is_letter(text[stop : stop + 1]):
        if stop - start >= WORD_LIMIT:
            break
        stop += 1
    return start, stop


def _is_letter(character: str) -> bool:
    return character.isalnum() or character in ("_", "'", "’")


def places(words: Sequence[KeptWord]) -> list[Place]:
    """The places that the words, in the order of the document, are part of.

    A word joins the one before it if no token lies between and their scores differ by less than
    SAME_SCORE.
    """
    found: list[list[KeptWord]] = []
    for word in words:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and word.positions[0] == last.positions[-1] + 1
            and abs(word.score - last.score) < SAME_SCORE
        ):
            found[-1].append(word)
        else:
            found.append([word])
    return [Place(tuple(group)) for group in found]


def snippets(text: str, words: Sequence[KeptWord], context: int = 40) -> list[Snippet]:
    """Stretches of the document with `context` characters on each side of the kept words.

    Stretches that touch become one. They begin and end at white space where there is some.
    """
    found: list[Snippet] = []
    for word in words:
        start, stop = _widen(text, word.start, word.stop, context)
        if found and start <= found[-1].stop:
            last = found[-1]
            found[-1] = Snippet(last.start, max(last.stop, stop), (*last.words, word))
        else:
            found.append(Snippet(start, stop, (word,)))
    return found


def _widen(text: str, start: int, stop: int, context: int) -> tuple[int, int]:
    left, right = max(0, start - context), min(len(text), stop + context)
    if left > 0 and (gap := text.find(" ", left, start)) >= 0:
        left = gap + 1
    if right < len(text) and (gap := text.rfind(" ", stop, right)) >= 0:
        right = gap
    return left, right


def cut(text: str, snippet: Snippet) -> list[tuple[str, KeptWord | None]]:
    """The snippet's text in pieces: each kept word with itself, what lies between with None.

    Of two kept words that overlap, the first has the characters they share.
    """
    pieces: list[tuple[str, KeptWord | None]] = []
    at = snippet.start
    for word in snippet.words:
        if word.stop <= at:
            continue
        if at < word.start:
            pieces.append((text[at : word.start], None))
        pieces.append((text[max(at, word.start) : word.stop], word))
        at = word.stop
    if at < snippet.stop:
        pieces.append((text[at : snippet.stop], None))
    return pieces
