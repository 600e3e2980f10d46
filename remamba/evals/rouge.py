"""Rouge-L as version 1.0.1 of the `rouge` package computes it, which LongBench scores with."""

from __future__ import annotations

WALK_LIMIT = 990
"""Steps after which the package's recursive walk ends in an error, which LongBench counts as 0."""


def rouge_l(prediction: str, reference: str) -> float:
    """F of the summary-level Rouge-L, from 0 to 1; 0 where the package raises an error.

    Sentences end at full stops, words at single spaces; words are counted as sets. An empty
    sentence between two spaces is a word of its own, "".
    """
    written, wanted = _sentences(prediction), _sentences(reference)
    if not written or not wanted:
        return 0.0
    common: set[str] = set()
    for sentence in wanted:
        for other in written:
            found = _common_words(sentence, other)
            if found is None:
                return 0.0
            common |= found
    precision = len(common) / len({word for sentence in written for word in sentence})
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(first: list[str], second: list[str]) -> set[str] | None:
    """The words of the longest common subsequence that the package finds; None past WALK_LIMIT.

    Of several longest ones it takes that which leaves words of `second` unmatched first.
    """
    rows = [[0] * (len(second) + 1)]
    for word in first:
        above, row, left = rows[-1], [0], 0
        for j, other in enumerate(second):
            if word == other:
                left = above[j] + 1
            elif above[j + 1] > left:
                left = above[j + 1]
            row.append(left)
        rows.append(row)
    i, j, steps, found = len(first), len(second), 0, set()
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.add(first[i - 1])
            i, j = i - 1, j - 1
        elif rows[i - 1][j] > rows[i][j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
        if steps > WALK_LIMIT:
            return None
    return found
