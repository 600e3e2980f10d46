"""Two tasks on numbered paragraphs: which one is a quote from, and how many differ."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lab.planted.prose import PARAGRAPH
from lab.planted.task import Asked, Draft, Source, Span
from remamba.errors import InputError

SIZES = (40, 200)
"""Tokens of a paragraph, on average over a context, as far as `MOST` allows."""
LEAST_SIZE = 60
"""Tokens of a paragraph with its labels; a context holds no more than so many."""
MOST = 40
QUOTE_WORDS = (8, 30)
TRIES = 100

_CLAUSE_END = re.compile(r"[,;:]\s+")
_SENTENCE_CLOSE = re.compile(r"""[.!?"')\]]*$""")


@dataclass(frozen=True)
class Paragraph:
    """Consecutive sentences of a book, on one line."""

    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    def span(self, number: int) -> Span:
        """Where a sentence stands in the text."""
        start = sum(len(sentence) + 1 for sentence in self.sentences[:number])
        return start, start + len(self.sentences[number])


@dataclass(frozen=True)
class RetrievalTask:
    """Paragraphs of several books; a line is quoted, and its paragraph's number is asked for.

    The evidence is the quoted sentence and its paragraph's label: the closing one, where there is
    one, since a model that reads once from left to right meets only that one after the sentence.

    Args:
        paraphrase: share of quotes that are not verbatim: a clause is dropped, clauses change
            places, or every so-manieth word is left out.
        closing_label: paragraphs end with their label, too, "(Paragraph 7)".
        first: the first paragraph's number, drawn from this range.
        asks_next: the number wanted is that of the paragraph after the quoted line's, and numbers
            come in no order: the words of the question are nowhere near it, so that search does not
            find it. Its evidence is the line and that paragraph's opening label.

    Raises:
        InputError: `paraphrase` is no share, or `first` no range of numbers.
    """

    paraphrase: float = 0.5
    closing_label: bool = True
    first: tuple[int, int] = (1, 1)
    asks_next: bool = False

    name = "retrieval"
    metric = "exact"
    new_tokens = 8

    @property
    def template(self) -> str:
        return "" if self.asks_next else "passage_retrieval_en"

    def __post_init__(self) -> None:
        if not 0 <= self.paraphrase <= 1:
            raise InputError(f"paraphrase {self.paraphrase}: give a share from 0 to 1")
        low, high = self.first
        if not 1 <= low <= high:
            raise InputError(f"--first-paragraph {low} {high}: give two numbers, 1 <= LO <= HI")

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """Up to 40 paragraphs, and quotes of different ones as long as there are some.

        Raises:
            InputError: fewer than 120 tokens, or the books have too little to quote.
        """
        room = source.range_of(tokens, rng)
        for _ in range(TRIES):
            count = _how_many(source, rng, room[1], 5)
            if count < 2:
                low, high = tokens
                raise InputError(f"--tokens {low} {high}: retrieval needs 120 or more")
            first = rng.randint(*self.first)
            numbers: Sequence[int] = range(first, first + count)
            if self.asks_next:
                numbers = rng.sample(range(1, 100), count)
            closings = [self._closing(number) for number in numbers]
            labels = [_opening(n) + end for n, end in zip(numbers, closings, strict=True)]
            drawn = _draw(source, rng, [1] * count, _left(source, room, labels), tokens)
            rng.shuffle(drawn)
            context, starts = _join(drawn, numbers, closings)
            asked = self._ask(rng, context, drawn, numbers, starts, questions)
            if asked or not questions:
                return Draft(context, tuple(asked))
        raise InputError(
            f"--books: no sentence of {QUOTE_WORDS[0]} to {QUOTE_WORDS[1]} words that occurs in "
            "one paragraph only; give more books"
        )

    def _closing(self, number: int) -> str:
        return f" (Paragraph {number})" if self.closing_label else ""

    def _ask(
        self,
        rng: random.Random,
        context: str,
        paragraphs: Sequence[Paragraph],
        numbers: Sequence[int],
        starts: Sequence[int],
        questions: int,
    ) -> list[Asked]:
        fewest, most = QUOTE_WORDS
        places = [
            (i, j)
            for i, paragraph in enumerate(paragraphs[: -1 if self.asks_next else None])
            for j, sentence in enumerate(paragraph.sentences)
            if fewest <= sentence.count(" ") + 1 <= most
        ]
        rng.shuffle(places)
        turn: dict[int, int] = {}  # a paragraph is quoted again once all others were
        turns = []
        for i, _ in places:
            turn[i] = turn.get(i, -1) + 1
            turns.append(turn[i])
        asked: list[Asked] = []
        for place in sorted(range(len(places)), key=turns.__getitem__):
            if len(asked) == questions:
                break
            i, j = places[place]
            sentence = quote = paragraphs[i].sentences[j]
            if context.count(sentence) > 1:
                continue
            if rng.random() < self.paraphrase:
                quote = paraphrased(rng, sentence)
                if quote in context:
                    continue
            label = f"Paragraph {numbers[i + self.asks_next]}"
            start, stop = (starts[i] + n for n in paragraphs[i].span(j))
            if self.asks_next:
                at = starts[i + 1] - len(label) - len(": ")
            elif self.closing_label:
                at = starts[i] + len(paragraphs[i].text) + len(" (")
            else:
                at = starts[i] - len(label) - len(": ")
            asked.append(Asked(quote, f" {label}", ((start, stop), (at, at + len(label)))))
        return asked


@dataclass(frozen=True)
class CountTask:
    """Paragraphs of which some stand there more than once; the number of different ones is asked.

    The evidence is the first occurrence of each, one thing to be found for every paragraph that
    counts.
    """

    name = "count"
    metric = "exact"
    template = "passage_count"
    new_tokens = 4
    most_unique = 20

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """3 to 40 paragraphs, 2 to 20 of them different; one question, as there is but one.

        Raises:
            InputError: fewer than 180 tokens, or the books are too short.
        """
        room = source.range_of(tokens, rng)
        count = _how_many(source, rng, room[1], 3)
        if count < 3:
            low, high = tokens
            raise InputError(f"--tokens {low} {high}: count needs 180 or more")
        unique = rng.randint(max(2, -(-count // 4)), min(self.most_unique, count - 1))
        times = [1] * unique
        for _ in range(count - unique):
            times[rng.randrange(unique - 1)] += 1  # the last one is cut to what is left
        times.sort(reverse=True)
        numbers = range(1, count + 1)
        labels = [_opening(number) for number in numbers]
        drawn = _draw(source, rng, times, _left(source, room, labels), tokens)
        order = [i for i in range(unique) for _ in range(times[i])]
        rng.shuffle(order)
        context, starts = _join([drawn[i] for i in order], numbers, [""] * count)
        firsts = sorted(order.index(i) for i in range(unique))
        evidence = tuple((starts[at], starts[at] + len(drawn[order[at]].text)) for at in firsts)
        question = "How many different paragraphs are there?"
        return Draft(context, (Asked(question, f" {unique}", evidence),)[:questions])


def paraphrased(rng: random.Random, sentence: str) -> str:
    """The sentence in other words: clauses dropped or in another order, or words left out."""
    close = _SENTENCE_CLOSE.search(sentence)
    assert close is not None
    body, end = sentence[: close.start()], close[0]
    clauses = _CLAUSE_END.split(body)
    ways = ["words"]
    if len(clauses) > 1:
        ways.append("order")
        if any(body.count(" ") - clause.count(" ") >= 6 for clause in clauses):
            ways.append("clause")
    way = rng.choice(ways)
    if way == "words":
        step, words = rng.randint(3, 5), body.split(" ")
        return " ".join(word for i, word in enumerate(words, 1) if i % step) + end
    if way == "order":
        cut = rng.randrange(1, len(clauses))
        clauses = clauses[cut:] + clauses[:cut]
    else:
        long = [i for i, c in enumerate(clauses) if body.count(" ") - c.count(" ") >= 6]
        del clauses[rng.choice(long)]
    return ", ".join(clauses) + end


def _how_many(source: Source, rng: random.Random, aim: int, fewest: int) -> int:
    """Paragraphs for a context of this length; less than `fewest` only where it is very short."""
    tokens = aim // source.lengths.unit
    wanted = round(tokens / rng.uniform(*SIZES))
    return min(max(wanted, fewest), MOST, tokens // LEAST_SIZE)


def _opening(number: int) -> str:
    return f"{PARAGRAPH}Paragraph {number}:"


def _left(
    source: Source, room: tuple[int, int, int], labels: Sequence[str]
) -> tuple[int, int, int]:
    """The room that labels leave; the first one has no blank line before it."""
    used = sum(map(source.lengths.cost, labels)) - source.lengths.cost(PARAGRAPH)
    low, aim, high = room
    return low - used, aim - used, high - used


def _join(
    paragraphs: Sequence[Paragraph], numbers: Sequence[int], closings: Sequence[str]
) -> tuple[str, list[int]]:
    """The context, and where the text of each paragraph begins in it."""
    pieces: list[str] = []
    starts: list[int] = []
    length = 0
    for paragraph, number, closing in zip(paragraphs, numbers, closings, strict=True):
        head = _opening(number) + " "
        if not pieces:
            head = head[len(PARAGRAPH) :]
        starts.append(length + len(head))
        pieces.append(head + paragraph.text + closing)
        length += len(pieces[-1])
    return "".join(pieces), starts


def _draw(
    source: Source,
    rng: random.Random,
    times: Sequence[int],
    room: tuple[int, int, int],
    tokens: tuple[int, int],
) -> list[Paragraph]:
    """Different paragraphs that fill the room if number i stands there times[i] times.

    The last one, which stands there once, is cut to what the others left.
    """
    low, aim, high = room
    drawn: list[Paragraph] = []
    for i, copies in enumerate(times):
        last = i == len(times) - 1
        for _ in range(TRIES):
            if last:
                bounds = aim, aim + aim // 4, aim + aim // 2
            else:
                left = sum(times[i:])
                mean, rest = aim / left, left / copies - 1  # rest: of the others to these
                least = mean * max(0.5, 1 - rest)  # leaves the others twice the mean at most,
                most = mean * min(1.5, 1 + rest / 2)  # or half of it at least
                share = rng.uniform(least, most)
                bounds = int(max(least, 0.7 * share)), int(share), int(min(most, 1.2 * share))
            passage = source.prose.passage(rng, *bounds)
            sentences = [sentence.strip() for sentence, _ in passage]
            if last:
                _shorten(source, sentences, aim)
            found = Paragraph(tuple(sentences))
            cost = source.lengths.cost(" " + found.text)
            if last and cost < low - 5 * source.lengths.unit:
                continue  # the book ends here
            if sentences and not any(found.text in p.text or p.text in found.text for p in drawn):
                break
        else:
            raise InputError(
                f"--tokens {tokens[0]} {tokens[1]}: the books have too few different passages "
                "for documents of this length; give longer books or fewer tokens"
            )
        drawn.append(found)
        low, aim, high = (n - copies * cost for n in (low, aim, high))
    return drawn


def _shorten(source: Source, sentences: list[str], room: int) -> None:
    """Cut the last words until the rest takes the room at most, with the space before it."""
    over = source.lengths.cost(" " + " ".join(sentences)) - room
    while over > 0 and sentences:
        words = sentences.pop().split(" ")
        over += source.lengths.cost(".")
        while over > 0 and words:
            over -= source.lengths.cost(" " + words.pop())
        if rest := " ".join(words).rstrip(".,;:!?-\"'"):
            sentences.append(rest + ".")
        else:
            over -= source.lengths.cost(".")
