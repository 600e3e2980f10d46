"""The books between the facts: prose read from JSON lines, and passages of a given length in it."""

from __future__ import annotations

import bisect
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remamba.errors import InputError
from remamba.json_lines import JsonLines, Lines, Row

PARAGRAPH = "\n\n"
CHARS_PER_TOKEN = 4  # without a tokenizer
TEXT_SUFFIXES = {".txt", ".md"}

_HEADING = re.compile(
    r"^(#|\||!\[|-{3,}|\*{3,}|={3,}|(chapter|book|part|act|scene)\b.{0,40}$)", re.I
)
_SENTENCE_END = re.compile(r"""[.!?]+["')\]]*\s+(?=["'(\[]*[A-Z])""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|St|Messrs|Mme|Mlle|Capt|Col|Gen|Lieut|Sergt|Prof|Rev|Hon|Esq|No|"
    r"Nos|Vol|vol|vs|viz|cf|etc|[A-Za-z])\.\s+$"
)
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "_": None, "*": None, "\\": None})


def read_books(paths: Sequence[str | Path]) -> list[list[str]]:
    """The paragraphs of each book in the files.

    A file is one book (.txt or .md), or JSON lines with a "text" each; .gz and .xz are unpacked.
    Headings and ornaments are dropped, white space is normalised, markup and curly quotes are
    made plain.

    Raises:
        InputError: a file or a line cannot be read, or there is no prose in them.
    """
    books = []
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"--books {path}: there is no such file")
        if set(path.suffixes[-2:]) & TEXT_SUFFIXES:
            texts = [_whole_text(path)]
        else:
            texts = [_text(row) for row in JsonLines(path)]
        books += [paragraphs for text in texts if (paragraphs := clean_paragraphs(text))]
    if not books:
        raise InputError(f"--books {' '.join(map(str, paths))}: no prose in these files")
    return books


def _text(row: Row) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f'{row.where}: a book is an object with a "text"')
    return text


def _whole_text(path: Path) -> str:
    try:
        return b"\n".join(line.rstrip(b"\n") for _, line in Lines(path)).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"--books {path}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def clean_paragraphs(text: str) -> list[str]:
    """Split a book into paragraphs of prose, each on one line."""
    kept = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        block = block.strip()
        if not block or _HEADING.match(block):
            continue
        paragraph = " ".join(block.translate(_PLAIN).split())
        if len(paragraph) >= 12 and paragraph[-1] in ".!?\"')" and not paragraph.isupper():
            kept.append(paragraph)
    return kept


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph at its sentence ends; " ".join gives it back."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph, max(start, match.start() - 12), match.end()):
            sentences.append(paragraph[start : match.end()].rstrip())
            start = match.end()
    sentences.append(paragraph[start:])
    return sentences


class WordCost(dict):
    """Tokens of a word that follows `before`, counted once for each word."""

    def __init__(self, tokenizer: Any, before: str) -> None:
        super().__init__()
        self.tokenizer, self.before = tokenizer, before

    def __missing__(self, word: str) -> int:
        encoded = self.tokenizer.encode(self.before + word, add_special_tokens=False)
        self[word] = cost = len(encoded.ids)
        return cost


class Lengths:
    """Measures text in tokens of a `tokenizers.Tokenizer`, or in characters when it is None.

    `unit` is what a token measures on average: 1, or characters a token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.unit = 1 if tokenizer is not None else CHARS_PER_TOKEN
        self._bare = WordCost(tokenizer, "")
        self._spaced = WordCost(tokenizer, " ")

    def cost(self, piece: str) -> int:
        """Length of a piece of text.

        A token never spans the space before a word, so that the costs of words add up.
        """
        if self.tokenizer is None:
            return len(piece)
        first, *words = piece.split(" ")
        return self._bare[first] + sum(map(self._spaced.__getitem__, words))


@dataclass
class Prose:
    """Draws passages from books."""

    books: list[list[str]]
    lengths: Lengths
    _sizes: list[int] = field(default_factory=list, repr=False)
    _passages: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        total = 0
        for book in self.books:  # cumulative numbers of paragraphs: long books are drawn more often
            total += len(book)
            self._sizes.append(total)
        self._paragraph_cost = self.lengths.cost(PARAGRAPH)

    def _sentences(self, book: int, paragraph: int) -> list[tuple[str, int, bool]]:
        """(text with what stands before it, cost, may a fact follow) of a paragraph's sentences."""
        key = (book, paragraph)
        found = self._passages.get(key)
        if found is None:
            found, quotes = [], 0
            for number, text in enumerate(split_sentences(self.books[book][paragraph])):
                quotes += text.count('"')
                if number:
                    text = " " + text
                    cost = self.lengths.cost(text)
                else:
                    cost = self.lengths.cost(text) + self._paragraph_cost
                    text = PARAGRAPH + text
                found.append((text, cost, quotes % 2 == 0))
            self._passages[key] = found
        return found

    def passage(
        self, rng: random.Random, low: int, aim: int, high: int, *, joined: bool = False
    ) -> list[tuple[str, bool]]:
        """Consecutive sentences of one book, `low` to `high` long together, `aim` if it can be.

        Each comes with the break before it, and with whether a fact may follow it; none where the
        books are too short. `joined`: where a book ends the next one goes on, until all were read.
        """
        for _ in range(200):
            place = rng.randrange(self._sizes[-1])
            book = bisect.bisect_right(self._sizes, place)
            paragraph = place - (self._sizes[book - 1] if book else 0)
            places = self._places(book, paragraph, joined)
            if sentences := self._passage_at(places, low, aim, high):
                return sentences
        return []

    def _places(self, book: int, paragraph: int, joined: bool) -> Iterator[tuple[int, int]]:
        """The paragraphs from this one on."""
        yield from ((book, number) for number in range(paragraph, len(self.books[book])))
        if joined:
            for other in (*range(book + 1, len(self.books)), *range(book)):
                yield from ((other, number) for number in range(len(self.books[other])))

    def _passage_at(
        self, places: Iterable[tuple[int, int]], low: int, aim: int, high: int
    ) -> list[tuple[str, bool]]:
        """The passage of these paragraphs; empty if they end too early."""
        used = -self._paragraph_cost  # the document does not begin with a blank line
        taken: list[tuple[str, bool]] = []
        for book, number in places:
            for text, cost, open_slot in self._sentences(book, number):
                if used + cost <= aim or (used < low and used + cost <= high):
                    taken.append((text, open_slot))
                    used += cost
                elif taken and used >= low:
                    return taken
                else:
                    rest = self.cut(text, max(aim, low) - used)
                    return [*taken, (rest, True)] if rest else taken
        return taken if used >= low else []

    def cut(self, text: str, room: int) -> str:
        """The first words of a sentence, as many as fit with a full stop; none may fit."""
        head = PARAGRAPH if text.startswith(PARAGRAPH) else ""
        room -= self.lengths.cost(head) + self.lengths.cost(".")
        kept: list[str] = []
        for word in text[len(head) :].split(" "):
            room -= self.lengths.cost(word if head and not kept else " " + word)
            if room < 0:
                break
            kept.append(word)
        words = " ".join(kept).rstrip(".,;:!?-\"'")
        return f"{head}{words}." if words.strip() else ""
