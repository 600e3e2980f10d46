"""Words that no language has: pronounceable, alike on purpose, and each of one split only."""

from __future__ import annotations

import random
from collections.abc import Collection

from lab.planted.words import split_of

_ONSETS = (
    *"bcdfghjklmnprstvwz",
    *("br", "dr", "fl", "gl", "gr", "pl", "pr", "sk", "sl", "st", "tr"),
)
_VOWELS = "aeiou"
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "nd", "rn")
_ENDINGS = ("", "l", "n", "r", "x", "th", "ne", "ck", "sk", "lt")
_CONSONANTS = "bdfgklmnprstvz"


def made_up_word(rng: random.Random, split: str, taken: Collection[str] = ()) -> str:
    """A word of two or three syllables ("sorvane") of this split, none of the taken ones."""
    while True:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            for _ in range(1 + (rng.random() < 0.4))
        ]
        word = "".join(syllables) + rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDINGS)
        if 5 <= len(word) <= 9 and word not in taken and split_of(word) == split:
            return word


def similar_word(rng: random.Random, word: str, split: str, taken: Collection[str] = ()) -> str:
    """A word of this split that differs from `word` in one or two letters, vowels for vowels."""
    while True:
        letters = list(word)
        for place in rng.sample(range(len(word)), rng.randint(1, 2)):
            letters[place] = rng.choice(_VOWELS if word[place] in _VOWELS else _CONSONANTS)
        found = "".join(letters)
        if found != word and found not in taken and split_of(found) == split:
            return found
