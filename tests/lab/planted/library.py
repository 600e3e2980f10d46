"""A small library to plant tasks in: books of word soup in which no two sentences are alike."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from lab.planted.prose import Lengths, Prose
from lab.planted.task import Draft, Source, Task
from tests.tiny import END, byte_level_bpe

_WORDS = """
the a of and to in was his her that with it had not at from by on they she upon there
harbour keeper window letter river garden evening captain answer silence winter candle market
horse village brother doctor morning shadow journey stranger kitchen bridge soldier
"""


def _sentence(rng: random.Random) -> str:
    known = _WORDS.split()
    words = [rng.choice(known) for _ in range(rng.randint(3, 24))]
    if len(words) > 9:
        words[4] += rng.choice(",;,")
    return " ".join(words).capitalize() + rng.choice(".?.!")


@cache
def books() -> list[list[str]]:
    """Paragraphs of four books."""
    rng = random.Random(0)
    return [
        [" ".join(_sentence(rng) for _ in range(rng.randint(1, 5))) for _ in range(150)]
        for _ in range(4)
    ]


@cache
def tokenizer() -> Any:
    """A `tokenizers.Tokenizer` that knows their words."""
    text = [" ".join(paragraphs) for paragraphs in books()]
    return byte_level_bpe(text, 700, END).backend_tokenizer


def source(split: str = "train", *, characters: bool = False) -> Source:
    """The library as a task sees it; `characters`: measured in characters, not in tokens."""
    lengths = Lengths(None if characters else tokenizer())
    return Source(Prose(books(), lengths), lengths, split)


def drafts(
    task: Task,
    tokens: tuple[int, int] = (500, 800),
    *,
    number: int = 12,
    split: str = "train",
    questions: int = 5,
) -> list[Draft]:
    """So many contexts, each from a seed of its own."""
    place = source(split)
    return [
        task.make(place, random.Random(f"{split}/{i}"), tokens, questions) for i in range(number)
    ]


def check_budget(task: Task, lacking: int = 10) -> None:
    """Contexts are as long as asked, in tokens and in characters, but for a few that may lack."""
    for low, high in ((400, 400), (500, 900), (3000, 3000)):
        for characters in (False, True):
            place = source(characters=characters)
            for i in range(6):
                text = task.make(place, random.Random(i), (low, high), 3).context
                if characters:
                    length = len(text) / 4
                else:
                    length = len(tokenizer().encode(text).ids)
                assert low - lacking <= length <= high, (low, high, characters, length)


def check_seeded(task: Task) -> None:
    """The same seed gives the same draft, whatever was made before; another seed another one."""
    place = source()
    first = task.make(place, random.Random("a"), (500, 800), 4)
    other = task.make(place, random.Random("b"), (500, 800), 4)
    assert task.make(place, random.Random("a"), (500, 800), 4) == first
    assert task.make(source(), random.Random("b"), (500, 800), 4) == other
    assert first.context != other.context


def check_without_questions(task: Task) -> None:
    """A context may stand alone, as text to learn the language from."""
    draft = task.make(source(), random.Random(0), (500, 800), 0)
    assert draft.context and draft.questions == ()
