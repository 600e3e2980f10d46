"""What the open test shares with the files of a training: nothing, or what is told by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from lab.planted.open_test import fresh_phrasings, held_out_kinds, open_words
from lab.planted.prose import TEXT_SUFFIXES
from remamba.errors import InputError
from remamba.json_lines import JsonLines, Lines

_FUNCTION_WORDS = """
a about after again all also am among an and another any are as at be been before being between
both but by can could did do does down each every for from get got had has have having he her
his how i if in into is it its just let made make many may me might more most much must my
never no nor not of off on one only or other our out over own same shall she should so some
still such than that the their them then there these they this those through till to too under
until up upon us very was we were what when where which who whom whose why will with would you
your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that tell nothing of what a sentence is about."""
SHOWN = 5


def content_words(text: str) -> set[str]:
    """The words that matter, in lower case; places such as {p} are none."""
    words = re.findall(r"[^\W_]+", re.sub(r"\{\w\}", " ", text).lower())
    return {word for word in words if len(word) > 1 and word not in FUNCTION_WORDS}


def shared_words(one: Iterable[str], other: Iterable[str]) -> set[str]:
    """Those of `one` that are words of `other`, or begin with the same five letters ("owes", "owe"
    are two; "published", "publisher" are one)."""
    known = set(other)
    stems = {word[:5] for word in known if len(word) >= 5}
    return {word for word in one if word in known or (len(word) >= 5 and word[:5] in stems)}


def open_phrases() -> list[str]:
    """Every sentence and question that the open test has for its own."""
    kinds = (*fresh_phrasings(), *held_out_kinds("ask"), *held_out_kinds("apart"))
    return list(dict.fromkeys(text for kind in kinds for text in (*kind.facts, *kind.questions)))


def find_shared(texts: Iterable[str]) -> list[str]:
    """The new names, values and sentences of the open test that occur in texts, sorted.

    A word counts wherever it stands as a word, in any case; a sentence with up to 40 characters of
    one line in the place of name and value.
    """
    words = {word.lower() for word in chain.from_iterable(open_words().values())}
    phrases = [(phrase, *_searched(phrase)) for phrase in open_phrases()]
    shared: set[str] = set()
    for text in texts:
        text = text.lower()
        shared |= words.intersection(re.findall(r"[^\W_]+", text))
        # the regular expression is slow, the search for its longest piece is not
        shared |= {p for p, piece, whole in phrases if piece in text and whole.search(text)}
    return sorted(shared)


def _searched(template: str) -> tuple[str, re.Pattern[str]]:
    """The longest piece between a template's places, and what matches all of it."""
    pieces = re.split(r"\{\w\}", template.lower())
    whole = r"[^\n]{1,40}?".join(map(re.escape, pieces))
    return max(pieces, key=len), re.compile(whole)


def texts_of(file: Path) -> Iterator[str]:
    """The texts of a file of books, of planted rows, or of rows that `remamba train` reads."""
    if set(file.suffixes[-2:]) & TEXT_SUFFIXES:
        yield b"\n".join(line for _, line in Lines(file)).decode(errors="replace")
        return
    for row in JsonLines(file):
        if isinstance(text := row.get("text"), str):
            yield from text.split("\n\n")
        else:
            yield json.dumps(row.get("document", ""), ensure_ascii=False)
            for question in row.get("questions") or ():
                yield f"{question['question']}{question['response']}"


def check_apart(files: Sequence[Path]) -> None:
    """Raises InputError where the open test shares a name, value or sentence with a file."""
    for file in files:
        if not file.is_file():
            raise InputError(f"--apart-from {file}: there is no such file")
        if shared := find_shared(texts_of(file)):
            more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
            raise InputError(
                f"--apart-from {file}: it has words or sentences of the open test "
                f"({', '.join(map(repr, shared[:SHOWN]))}{more}); a model that was trained on it "
                "cannot be asked them"
            )
