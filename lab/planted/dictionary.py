"""Made-up words in book prose, and questions for what they mean or which of them means something.

"By the word sorvane they mean a kind of blue cloth." Many words differ from another in one or two
letters, so that an answer needs the whole word. Words, meanings, and the sentences that tell and
ask for them belong to one split each. The questions of dev and test share no word that matters with
the sentences that tell: training knows their words from its own questions alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lab.planted.made_up import made_up_word, similar_word
from lab.planted.planting import compose
from lab.planted.task import Asked, Draft, Source
from lab.planted.words import values_of
from remamba.errors import InputError

# A sentence may begin with a word in small letters, as in a dictionary: the word is then the same
# tokens everywhere.
ENTRIES = {
    "train": (
        "{w}: a kind of {m}.",
        "{w} is a kind of {m}.",
        "By the word {w} they mean a kind of {m}.",
        "The word {w} stands for a kind of {m}.",
        "In those parts {w} means a kind of {m}.",
        "A kind of {m} is called {w}.",
        "A kind of {m} has the name {w}.",
        "Old people say {w} and mean a kind of {m}.",
    ),
    "dev": (
        "Whoever spoke of {w} was thinking of some sort of {m}.",
        "To a sailor {w} was nothing but a sort of {m}.",
        "Any sort of {m} went as {w} among the fishermen.",
    ),
    "test": (
        "With {w} they referred to a variety of {m}.",
        "Travellers took {w} for a variety of {m}.",
        "Some variety of {m} passed under the label {w}.",
    ),
}
ASK_MEANING = {
    "train": (
        "What does the word {w} mean?",
        "What is the meaning of {w}?",
        "What do they mean by {w}?",
        "For what does the word {w} stand?",
        "What kind of thing is called {w}?",
        "How do you explain the term {w}?",
        "How do you define the term {w}?",
        "What does one understand by the expression {w}?",
    ),
    "dev": ("How would one explain the term {w}?", "What should one understand by the term {w}?"),
    "test": ("How would one explain the expression {w}?", "How would you define {w}?"),
}
ASK_WORD = {
    "train": (
        "Which word means a kind of {m}?",
        "Which word stands for a kind of {m}?",
        "What do they call a kind of {m}?",
        "What is the name of a kind of {m}?",
        "Which term denotes a kind of {m}?",
        "Which expression do they use for a kind of {m}?",
    ),
    "dev": ("Which term do they use for {m}?", "What expression denotes {m}?"),
    "test": ("Which expression denotes {m}?", "What term would one use for {m}?"),
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words("""
apron arrow axe bag barrel basket bead bean bell belt bench berry blanket boat boot bottle bowl box
bread broom brush bucket buckle butter button cake candle cap carpet cart chain chair cheese chest
cloak cloth coal coat coin cord cradle crate cup curtain dish door drum fence fiddle flour flute
fork fur garment glass glove grain grass hammer harness hat herb hinge honey hook horn jacket jar
jug kettle key knife knot lace ladder lamp leather lock loom medicine metal mirror moss mug mushroom
nail necklace needle net nut oil oven paint paper pen pillow pipe plate plough pot purse rake resin
ribbon ring root rope saddle salt sauce saw scarf seed shawl sheet shell shield shirt shoe shovel
sickle sieve skirt soap soup spade spice spoon stick stone stool stove string sugar syrup table tent
thimble thread tile timber tool towel tray trumpet vase veil vinegar wagon wax whip whistle wine
wire wool
""")
QUALITIES = _words("""
ancient bitter bright broad broken cheap clean coarse common costly curved dark dry dull dusty
foreign fragile gentle hard heavy hollow large light little long mild narrow new old painted plain
pointed polished precious pretty pure rare rich rough round rusty sacred sharp short simple small
smooth soft sour square strange striped strong sweet tall thick thin tiny twisted ugly useful warm
wet wide wild worn woven
""")
COLOURS = _words("""
amber azure black blue bronze brown copper cream crimson golden green grey indigo iron ivory lilac
maroon olive orange pink purple red russet rust scarlet silver steel straw tan violet white wooden
yellow
""")


@dataclass(frozen=True)
class Entry:
    """A word, what it means in one to three words, and the sentence that says so."""

    word: str
    meaning: str
    text: str


@dataclass(frozen=True)
class DictionaryTask:
    """Look-up of made-up words: what one means, or which of them means something.

    Args:
        entries_per_1000: words that are explained in every 1,000 tokens, as far as they fit in 4/5
            of the text.
        similar: share of words that differ from another one in one or two letters.
        backward: share of questions that give the meaning and ask for the word.

    Raises:
        InputError: an option is out of its range.
    """

    entries_per_1000: float = 15.0
    similar: float = 0.5
    backward: float = 0.5

    name = "dictionary"
    metric = "exact"
    template = "multifieldqa_en"
    new_tokens = 16

    def __post_init__(self) -> None:
        if not 0 < self.entries_per_1000 <= 100:
            raise InputError(
                f"entries_per_1000 {self.entries_per_1000}: give a number above 0, up to 100"
            )
        for name in ("similar", "backward"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: give a share from 0 to 1")

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with two entries or more, and questions each about another one.

        Raises:
            InputError: the context is too short for two entries, or the books are.
        """
        context, entries, spans = compose(
            source,
            rng,
            tokens,
            self.entries_per_1000,
            lambda count: self.entries(rng, max(2, count), source.split),
            lambda entries: len(entries) >= 2,
        )
        found = Counter(re.findall(r"[a-z]+", context.lower()))
        unique = [i for i, entry in enumerate(entries) if found[entry.word] == 1]  # in no book
        asked = []
        for i in rng.sample(unique, min(questions, len(unique))):
            entry = entries[i]
            backward = rng.random() < self.backward
            text = rng.choice((ASK_WORD if backward else ASK_MEANING)[source.split])
            text = text.replace("{w}", entry.word).replace("{m}", entry.meaning)
            answer = entry.word if backward else entry.meaning
            asked.append(Asked(text, f" {answer}", (spans[i],)))
        return Draft(context, tuple(asked))

    def entries(self, rng: random.Random, count: int, split: str) -> list[Entry]:
        """Up to so many entries, fewer where meanings run out.

        No two words are the same, and no meaning has all the words of another one.
        """
        meanings: dict[frozenset[str], str] = {}
        for _ in range(20 * count):
            if len(meanings) == count:
                break
            meaning = _meaning(rng, split)
            parts = frozenset(meaning.split())
            if not any(parts <= other or other <= parts for other in meanings):
                meanings[parts] = meaning
        words: dict[str, None] = {}  # a set in order
        while len(words) < len(meanings):
            if words and rng.random() < self.similar:
                word = similar_word(rng, rng.choice(list(words)), split, words)
            else:
                word = made_up_word(rng, split, words)
            words[word] = None
        shuffled = list(words)
        rng.shuffle(shuffled)
        return [
            Entry(
                word,
                meaning,
                rng.choice(ENTRIES[split]).replace("{w}", word).replace("{m}", meaning),
            )
            for word, meaning in zip(shuffled, meanings.values(), strict=True)
        ]


def _meaning(rng: random.Random, split: str) -> str:
    """A thing, in most cases with one or two words that describe it."""
    quality, colour, thing = (rng.choice(words[split]) for words in _SPLIT_WORDS)
    described = rng.choice(
        ((quality, colour, thing), (quality, thing), (colour, thing), (quality, thing), (thing,))
    )
    return " ".join(described)


def _by_split(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {split: values_of(words, split) for split in ENTRIES}


_SPLIT_WORDS = tuple(map(_by_split, (QUALITIES, COLOURS, THINGS)))
