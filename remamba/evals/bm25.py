"""Okapi BM25: which texts of a collection a query's words point at."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence


class BM25:
    """A collection to be searched; words are runs of letters and digits, in lower case.

    Args:
        k1: how soon a word that occurs again counts no more.
        b: how much a long text's words count less, from 0 to 1.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        self._k1 = k1
        self._counts = [Counter(_words(text)) for text in texts]
        self._holding = Counter(word for count in self._counts for word in count)
        lengths = [count.total() for count in self._counts]
        mean = sum(lengths) / max(len(lengths), 1) or 1.0
        self._shares = [k1 * (1 - b + b * length / mean) for length in lengths]

    def scores(self, query: str) -> list[float]:
        """One for each text: 0 where none of the query's words stands, higher is better."""
        scores = [0.0] * len(self._counts)
        for word in sorted(set(_words(query))):
            holding = self._holding[word]
            weight = math.log(1 + (len(scores) - holding + 0.5) / (holding + 0.5))
            for i, (count, share) in enumerate(zip(self._counts, self._shares, strict=True)):
                if found := count[word]:
                    scores[i] += weight * found * (self._k1 + 1) / (found + share)
        return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
