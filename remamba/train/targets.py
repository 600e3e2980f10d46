"""What the score should find: the places of an answer in a document, on token ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remamba.train.ragged import Ragged

LONGEST_ANSWER = 200
"""Characters; a longer answer is no quotation to look for."""


def answer_forms(answer: str) -> list[str]:
    """How an answer may stand in a document: with and without a space before, either first case."""
    core = answer.strip()
    core = core.rstrip(".,;:!?") or core
    if not core or len(core) > LONGEST_ANSWER:
        return []
    cased = dict.fromkeys([core, core[0].upper() + core[1:], core[0].lower() + core[1:]])
    return [space + form for form in cased for space in ("", " ")]


class AnswerFinder:
    """Finds every occurrence of an answer's token patterns.

    Args:
        patterns: token ids of every form of every answer.
        group: patterns[group[a] : group[a + 1]] are the forms of answer a.
        begins, ends: (v,) bool: tokens that begin or end with a letter or digit. An occurrence does
            not count where it is only a part of a longer word.
    """

    def __init__(self, patterns: Ragged, group: NDArray, begins: NDArray, ends: NDArray):
        self.patterns, self.group = patterns, group
        self.begins, self.ends = begins, ends

    def mask(self, tokens: NDArray, answers: NDArray) -> NDArray:
        """Where each answer's last token stands: (len(answers), len(tokens)) bool.

        Args:
            tokens: (l,) of the document.
            answers: (n,) numbers of answers; -1 finds nothing.
        """
        tokens = np.ascontiguousarray(tokens)
        found = np.zeros((len(answers), len(tokens)), dtype=bool)
        counts = np.where(answers >= 0, self.group[answers + 1] - self.group[answers], 0)
        if not len(tokens) or not counts.sum():
            return found
        asker = np.repeat(np.arange(len(answers)), counts)
        within = np.arange(len(asker)) - np.repeat(np.cumsum(counts) - counts, counts)
        pattern = np.repeat(np.where(answers >= 0, self.group[answers], 0), counts) + within
        row, at = self._occurrences(tokens, pattern)
        found[asker[row], at] = True
        return found

    def mask_within(self, tokens: NDArray, answers: NDArray, ranges: NDArray) -> NDArray:
        """The answers inside the evidence, and the evidence's last token.

        An answer may stand before what it is about; at the end both have been read.

        Args:
            ranges: (n, 2) positions of the evidence, from and up to; -1 -1 finds nothing.
        """
        position = np.arange(len(tokens))
        inside = (position >= ranges[:, :1]) & (position < ranges[:, 1:])
        found = self.mask(tokens, answers) & inside
        rows = np.flatnonzero(inside.any(axis=1))
        found[rows, ranges[rows, 1] - 1] = True
        return found

    def _occurrences(self, tokens: NDArray, pattern: NDArray) -> tuple[NDArray, NDArray]:
        """Pairs (which entry of `pattern`, position of its last token) of every occurrence."""
        flat, stop = self.patterns.flat, self.patterns.offsets[pattern + 1]
        length = stop - self.patterns.offsets[pattern]
        # candidates: every place of a pattern's last token, from the sorted document
        order = np.argsort(tokens, kind="stable")
        in_order = tokens[order]
        last = flat[stop - 1]
        low = np.searchsorted(in_order, last, side="left")
        counts = np.searchsorted(in_order, last, side="right") - low
        row = np.repeat(np.arange(len(pattern)), counts)
        at = order[np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(len(row))]
        keep = at - length[row] + 1 >= 0
        row, at = row[keep], at[keep]
        for back in range(1, int(length.max(initial=1))):
            longer = length[row] > back
            same = tokens[at - np.where(longer, back, 0)] == flat[stop[row] - 1 - back * longer]
            keep = ~longer | same
            row, at = row[keep], at[keep]
        first = at - length[row] + 1
        joined_left = (first > 0) & self.begins[tokens[first]] & self.ends[tokens[first - 1]]
        after = np.minimum(at + 1, len(tokens) - 1)
        joined_right = (at + 1 < len(tokens)) & self.ends[tokens[at]] & self.begins[tokens[after]]
        whole = ~(joined_left | joined_right)
        return row[whole], at[whole]
