"""The paper's training mixture: OpenOrca and LongAlpaca, filtered and cut as the authors did.

Otherwise than in their code, the long set holds no row beyond the limit (theirs lets ten tokens
pass), cut prompts are texts that are measured again, and the draw and the order have a seed. A long
row among OpenOrca's first may be in both sets, as it may be in theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remamba.errors import InputError
from remamba.json_lines import Row, check_encodable, kind
from remamba.train.encode import Encoder

LONG, NORMAL = "long", "normal"
SETS = (LONG, NORMAL)


class Source(NamedTuple):
    """A published data set, and what its fields are called."""

    name: str
    repository: str
    endings: tuple[str, ...]
    """Of the files that hold it on the hub."""
    prompt: str
    response: str
    sets: tuple[str, ...]
    """Which parts of the mixture it feeds."""


LONGALPACA = Source(
    "longalpaca", "Yukang/LongAlpaca-12k", (".json", ".jsonl"), "instruction", "output", (LONG,)
)
OPENORCA = Source(
    "openorca", "Open-Orca/OpenOrca", (".parquet",), "question", "response", (LONG, NORMAL)
)
SOURCES = (LONGALPACA, OPENORCA)
"""In the order of the authors' long set."""


@dataclass(frozen=True)
class Recipe:
    """Which rows the mixture takes; the defaults are the paper's and its released code's.

    Raises:
        InputError: a number is out of its range.
    """

    max_length: int = 6000
    """Tokens of a prompt, its response and the end-of-text."""
    keep_first: int = 1000
    """A longer prompt is cut right behind its first so many tokens."""
    long_prompt: int = 700
    """A prompt of more tokens belongs to the long set."""
    normal_rows: int = 300_000
    """Rows of the normal set, drawn from those that fit ..."""
    normal_from: int = 500_000
    """... of OpenOrca's first so many."""
    seed: int = 42
    """Of the draw and of the order."""

    def __post_init__(self) -> None:
        for name in ("max_length", "keep_first", "long_prompt", "normal_rows", "normal_from"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"--{name.replace('_', '-')} = {value} must be at least 1")
        if self.seed < 0:
            raise InputError(f"--seed = {self.seed} must be 0 or more")
        if self.keep_first + 2 > self.max_length:
            raise InputError(
                f"--keep-first {self.keep_first} leaves no room in --max-length {self.max_length}"
            )


class Instruction(NamedTuple):
    """A prompt with its response, and where it comes from."""

    prompt: str
    response: str
    number: int
    """Row of its source, from 0, over all of its files."""
    where: str


class Measured(NamedTuple):
    """An instruction that fits, and its lengths in tokens."""

    prompt: str
    response: str
    number: int
    prompt_tokens: int
    response_tokens: int
    is_cut: bool
    sets: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """All of them, the end-of-text included."""
        return self.prompt_tokens + self.response_tokens + 1


def instruction(row: Row, source: Source, number: int) -> Instruction:
    """The prompt and the response of a row; all else in it (system prompts, inputs) is left.

    Raises:
        InputError: one of them is missing, empty or no text.
    """
    texts = []
    for name in (source.prompt, source.response):
        value = row.get(name)
        if value is None:
            raise InputError(f"{row.where}: {name!r} is missing; is this {source.repository}?")
        if not isinstance(value, str):
            raise InputError(f"{row.where}: {name!r} is {kind(value)}; it must be a text")
        if not value.strip():
            raise InputError(f"{row.where}: {name!r} is empty")
        check_encodable(value, name, row.where)
        texts.append(value)
    return Instruction(texts[0], texts[1], number, row.where)


class Filter:
    """Measures, cuts and sorts instructions.

    Args:
        encoder: of the tokenizer that the model has.
        recipe: the limits.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe):
        self.encoder, self.recipe = encoder, recipe
        self.dropped = {"too long": 0, "too short for the long set": 0}

    def __call__(self, rows: Sequence[Instruction], source: Source) -> Iterator[Measured]:
        """The rows that belong to a set of the mixture, in order; the others are counted."""
        recipe = self.recipe
        responses = self.encoder.encode([row.response for row in rows])
        prompts = self.encoder.encode([row.prompt for row in rows])
        for row, prompt_ids, response_ids in zip(rows, prompts, responses, strict=True):
            length = len(self.encoder.opened(prompt_ids))
            prompt, is_cut = row.prompt, False
            if length + len(response_ids) + 1 > recipe.max_length:
                prompt, length = self._cut(row.prompt, recipe.max_length - len(response_ids) - 1)
                is_cut = True
            total = length + len(response_ids) + 1
            if not prompt:
                self.dropped["too long"] += 1
                continue
            sets = []
            if LONG in source.sets and length > recipe.long_prompt:
                sets.append(LONG)
            # the released code asks for less than the limit here, which cut rows just reach
            fits = total < recipe.max_length and not is_cut
            if NORMAL in source.sets and fits and row.number < recipe.normal_from:
                sets.append(NORMAL)
            if not sets:
                self.dropped["too short for the long set"] += 1
                continue
            yield Measured(
                prompt, row.response, row.number, length, len(response_ids), is_cut, tuple(sets)
            )

    def _cut(self, prompt: str, room: int) -> tuple[str, int]:
        """The prompt without what stands right behind its first tokens, and its tokens then.

        Empty if so much would have to go that nothing is left behind them. Cut texts are measured
        again, since the tokens at the seam may be others.
        """
        ((ids, ends),) = self.encoder.encode_with_ends([prompt])
        first = self.recipe.keep_first
        excess = len(self.encoder.opened(ids)) - room
        while len(ids) > first + excess:
            text = prompt[: ends[first - 1]] + prompt[ends[first + excess - 1] :]
            length = len(self.encoder.opened(self.encoder.encode([text])[0]))
            if length <= room:
                return text, length
            excess += length - room
        return "", 0


def draw_normal(count: int, recipe: Recipe) -> NDArray:
    """Which of the normal set's `count` candidates are taken: (count,) bool."""
    chosen = np.zeros(count, dtype=bool)
    order = np.random.default_rng([recipe.seed, 0]).permutation(count)
    chosen[order[: recipe.normal_rows]] = True
    return chosen


def draw_order(count: int, recipe: Recipe) -> NDArray:
    """(count,) the place of each row in the finished mixture."""
    return np.random.default_rng([recipe.seed, 1]).permutation(count)


def length_report(lengths: Iterable[int]) -> dict[str, Any]:
    """Shortest, mean, some quantiles and longest of row lengths, and a count by thousands."""
    values = np.sort(np.fromiter(lengths, dtype=np.int64))
    if not len(values):
        return {"rows": 0}
    thousands, counts = np.unique(values // 1000, return_counts=True)
    return {
        "rows": len(values),
        "tokens": int(values.sum()),
        "shortest": int(values[0]),
        "mean": round(float(values.mean()), 1),
        **{f"{100 * q:.0f} %": int(values[int(q * (len(values) - 1))]) for q in (0.25, 0.5, 0.9)},
        "longest": int(values[-1]),
        "by thousand": {
            f"{t}k": int(n) for t, n in zip(thousands.tolist(), counts.tolist(), strict=True)
        },
    }
