"""How far a score can be trusted: bootstrap intervals, and paired comparison of two runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb
from typing import NamedTuple
from zlib import crc32

import numpy as np

RESAMPLES = 2000
SEED = 0


class Interval(NamedTuple):
    """A 95 % interval, times 100."""

    low: float
    high: float


def resampled(
    dataset: str,
    scores: Sequence[float],
    strata: Sequence[Sequence[int]],
    clusters: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """(RESAMPLES,) scores of a dataset's resampled questions, times 100.

    Questions are drawn with replacement inside each stratum; the score is the unweighted mean of
    the strata's means. Each dataset has draws of its own.

    Args:
        clusters: the document of each question. Documents are then drawn, each with all its
            questions of the stratum, because questions about one document are not independent.
    """
    draw = np.random.default_rng([SEED, crc32(dataset.encode())])
    values = np.asarray(scores, dtype=float)
    means = []
    for rows in filter(len, strata):
        places = np.arange(len(rows))
        if clusters is not None:
            known: dict[Hashable, int] = {}
            places = np.array([known.setdefault(clusters[row], len(known)) for row in rows])
        sums = np.bincount(places, values[np.asarray(rows)])
        counts = np.bincount(places)
        picked = draw.integers(0, len(sums), (RESAMPLES, len(sums)))
        means.append(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))
    return 100 * np.mean(means, axis=0)


def interval(samples: np.ndarray) -> Interval:
    """The middle 95 % of resampled scores."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(float(low), float(high))


def sign_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of an exact sign test on paired scores; 1 where no pair differs."""
    wins = sum(a > b for a, b in zip(first, second, strict=True))
    losses = sum(a < b for a, b in zip(first, second, strict=True))
    n, least = wins + losses, min(wins, losses)
    tail = sum(comb(n, i) for i in range(least + 1))
    return min(1.0, 2 * tail / 2**n)
