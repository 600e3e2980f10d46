"""Questions from real prose without a template: a name or number is left out, and stood earlier.

The document is a passage of a book. A question is a sentence that follows it in the same book, with
a name or number masked that the document has, too; its evidence is the earlier sentence with that
word that is most like it. Nothing is planted, so nothing here is a generator's.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lab.planted.disjoint import content_words
from lab.planted.prose import PARAGRAPH
from lab.planted.task import Asked, Draft, Source, Span
from remamba.errors import InputError

TAIL = 400
"""Tokens behind the document whose sentences are asked about."""
WORDS = (6, 40)
"""Words of a sentence that is asked about."""
MOST_TIMES = 6
"""Of a word in the document: who is named on every page is guessed, not found."""
TRIES = 60
GAP = "____"

_MASKED = re.compile(r"(?<=[a-z,;] )(?:[A-Z][a-z]{2,}|\d{2,})(?![\w-])")
_NO_NAMES = """
And But Captain Christian Christmas Doctor Duke Easter Emperor English French Friday German God
Heaven Highness Honour Indian Italian King Lady Latin London Lord Lordship Madame Mademoiselle
Majesty Miss Monday Monsieur Mrs Prince Princess Queen Roman Saint Saturday Sir Spanish Sunday
The Thursday Tuesday Wednesday January February March April May June July August September
October November December
"""
NO_NAMES = frozenset(_NO_NAMES.split())
"""Words with a capital that tell no one from another."""


class Sentence(NamedTuple):
    """A sentence of the document and where it stands."""

    text: str
    span: Span
    words: set[str]
    """Those that matter."""


@dataclass(frozen=True)
class ProseTask:
    """Which word is missing? It stood earlier, in a sentence that shares a word with this one."""

    name = "prose"
    metric = "exact"
    template = ""
    new_tokens = 8

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A passage of a book, and questions about what follows it, each for another word.

        Raises:
            InputError: the books are too short, or name nobody twice.
        """
        low, aim, high = source.range_of(tokens, rng)
        tail = TAIL * source.lengths.unit
        for _ in range(TRIES):
            drawn = source.prose.passage(rng, low + tail, aim + tail, high + tail)
            if not drawn:
                raise InputError(
                    f"--tokens {tokens[0]} {tokens[1]}: the books are too short for documents of "
                    "this length and the text behind them; give longer books or fewer tokens"
                )
            head, rest = _cut(source, [text for text, _ in drawn], low, aim, high)
            context, sentences = _joined(head)
            if not questions:
                return Draft(context, ())
            asked = list(ask_about(context, sentences, rest[:-1]))  # the last one may be cut
            if asked:
                rng.shuffle(asked)
                return Draft(context, tuple(asked[:questions]))
        raise InputError("--books: no sentence names what the text before it names; give others")


def ask_about(
    context: str, sentences: Sequence[Sentence], following: Sequence[str]
) -> Iterator[Asked]:
    """The questions that the sentences behind a document give, each for another word."""
    holders = Counter(word for sentence in sentences for word in sentence.words)
    asked: set[str] = set()
    for text in following:
        text = text.strip()
        if not WORDS[0] <= text.count(" ") + 1 <= WORDS[1]:
            continue
        about = content_words(text)
        for match in _MASKED.finditer(text):
            word = match[0]
            whole = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
            if word in NO_NAMES or word in asked or len(whole.findall(text)) > 1:
                continue
            times = len(whole.findall(context))
            if not 1 <= times <= MOST_TIMES:
                continue
            likeness = [
                sum(1 / holders[shared] for shared in (about & one.words) - {word.lower()})
                if whole.search(one.text)
                else 0.0
                for one in sentences
            ]
            best = max(range(len(sentences)), key=likeness.__getitem__)
            if not likeness[best]:
                continue
            asked.add(word)
            question = text[: match.start()] + GAP + text[match.end() :]
            yield Asked(question, f" {word}", (sentences[best].span,), (word,))


def _cut(
    source: Source, texts: Sequence[str], low: int, aim: int, high: int
) -> tuple[list[str], list[str]]:
    """The sentences of the document, the last one cut where needed, and those behind it."""
    used = -source.lengths.cost(PARAGRAPH)  # with which the document does not begin
    for number, text in enumerate(texts):
        bare = text.removeprefix(PARAGRAPH)
        cost = source.lengths.cost(bare) + (source.lengths.cost(PARAGRAPH) if bare != text else 0)
        if used + cost > aim and (used >= low or used + cost > high):
            head, rest = list(texts[:number]), list(texts[number:])
            if used < low:
                head.append(source.prose.cut(rest.pop(0), aim - used))
            return head, rest
        used += cost
    return list(texts), []


def _joined(texts: Sequence[str]) -> tuple[str, list[Sentence]]:
    """The document, and its sentences."""
    context, found = "", []
    for text in texts:
        bare = text.removeprefix(PARAGRAPH).removeprefix(" ")
        context += bare if not context else text
        span = len(context) - len(bare), len(context)
        found.append(Sentence(bare, span, content_words(bare)))
    return context, found
