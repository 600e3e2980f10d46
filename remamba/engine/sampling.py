"""How the next token is chosen: greedily, or drawn by each request's own random numbers."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remamba.engine.likelihoods import MOST_LIKELIEST, check_likeliest
from remamba.errors import InputError
from remamba.fields import check_fields, shown


@dataclass(frozen=True)
class SamplingOptions:
    """How a completion is drawn and when it ends.

    Raises:
        InputError: a value is outside its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    stop_token_ids: tuple[int, ...] = ()
    """The text ends before the first of these tokens, as it does before an end-of-text token."""
    min_new_tokens: int = 0
    """So many tokens are drawn before an end-of-text token or one of stop_token_ids can be."""
    seed: int = 0
    ignore_eos: bool = False
    """Go on after an end-of-text token (for measurements)."""
    logprobs: int | None = None
    """Also tell each drawn token's log-probability, and so many of the likeliest tokens with it."""

    def __post_init__(self) -> None:
        try:
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            ends = tuple(map(operator.index, self.stop_token_ids))
        except TypeError as error:
            raise InputError(
                f"stop = {shown(self.stop)} must be texts, and stop_token_ids = "
                f"{shown(self.stop_token_ids)} whole numbers"
            ) from error
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", ends)
        check_fields(self)
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"min_new_tokens = {self.min_new_tokens} is outside [0, max_new_tokens = "
                f"{self.max_new_tokens}]"
            )
        if self.stop_token_ids and min(self.stop_token_ids) < 0:
            raise InputError(f"stop_token_ids: {min(self.stop_token_ids)} is no token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"temperature = {self.temperature} must be 0 (the likeliest token) or above"
            )
        if self.top_k < 0:
            raise InputError(f"top_k = {self.top_k} must be 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p = {self.top_p} is outside (0, 1]")
        if not all(stop):
            raise InputError("a stop string is empty; leave it out")
        check_likeliest("logprobs", self.logprobs)


class Sampler:
    """A request's options with random numbers of its own, so that other requests change nothing.

    Args:
        eos: the end-of-text tokens.
    """

    def __init__(self, options: SamplingOptions, eos: frozenset[int] = frozenset()):
        self.options = options
        self._random = random.Random(options.seed)
        ends = {*options.stop_token_ids, *(() if options.ignore_eos else eos)}
        self._ends = tuple(sorted(ends))
        self._drawn = 0

    def draw(self) -> float:
        """The next random number in [0, 1)."""
        return self._random.random()

    def next_forbidden(self) -> tuple[int, ...]:
        """The tokens that the next draw may not give; each call is for one draw."""
        self._drawn += 1
        return self._ends if self._drawn <= self.options.min_new_tokens else ()


TOLD = (0, 5, MOST_LIKELIEST)
"""How many of the likeliest tokens are looked for: few numbers, as a CUDA graph holds each."""


def most_told(samplers: Sequence[Sampler]) -> int | None:
    """How many of the likeliest tokens a step looks for; None where no row wants any told."""
    counts = [s.options.logprobs for s in samplers if s.options.logprobs is not None]
    return next(n for n in TOLD if n >= max(counts)) if counts else None


NARROW = 64
"""Most of the likeliest tokens that a draw may be among without sorting the vocabulary."""
ALL = 2**31


def width_of_draws(samplers: Sequence[Sampler]) -> int:
    """How many of the likeliest tokens have to be ordered: NARROW, ALL, or 0 (nothing is drawn)."""
    options = [s.options for s in samplers if s.options.temperature > 0]
    if not options:
        return 0
    return NARROW if all(0 < o.top_k <= NARROW for o in options) else ALL


def table_of_draws(samplers: Sequence[Sampler]) -> Tensor:
    """(4, b) float32: temperature, top_k, top_p and the next random number of each row.

    Only rows of a temperature above 0 draw a random number.
    """
    options = [sampler.options for sampler in samplers]
    points = [s.draw() if s.options.temperature > 0 else 0.0 for s in samplers]
    rows = [
        [o.temperature for o in options],
        [o.top_k for o in options],
        [o.top_p for o in options],
        points,
    ]
    return torch.tensor(rows, dtype=torch.float32)


def table_of_forbidden(samplers: Sequence[Sampler]) -> Tensor | None:
    """(b, n) int64, the tokens that each row may not draw next, -1 in rows that may draw any.

    None where no row forbids one. To be called once a draw.
    """
    rows = [sampler.next_forbidden() for sampler in samplers]
    most = max(map(len, rows), default=0)
    if not most:
        return None
    return torch.tensor([[*row, *(row[:1] or (-1,)) * (most - len(row))] for row in rows])


def without(logits: Tensor, forbidden: Tensor) -> Tensor:
    """The logits (b, vocab), -inf at each row's forbidden tokens (see `table_of_forbidden`)."""
    places = forbidden.clamp(0, logits.shape[1] - 1)
    is_real = (forbidden >= 0) & (forbidden < logits.shape[1])
    values = logits.gather(1, places).masked_fill(is_real, -torch.inf)
    return logits.scatter(1, places, values)


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row; None where its logits are not finite.

    Args:
        logits: (b, vocab).
        samplers: one a row.
    """
    width = width_of_draws(samplers)
    table = table_of_draws(samplers).to(logits.device) if width else None
    forbidden = table_of_forbidden(samplers)
    if forbidden is not None:
        logits = without(logits, forbidden.to(logits.device))
    return [None if t < 0 else t for t in choose_on_device(logits, table, width).tolist()]


def choose_on_device(logits: Tensor, table: Tensor | None, width: int) -> Tensor:
    """(b,) int64, the next token of each row; -1 where its logits are not finite.

    Waits for nothing, so that a CUDA graph can hold it.

    Args:
        logits: (b, vocab).
        table: of `table_of_draws`; not looked at when width is 0.
        width: of `width_of_draws`.
    """
    highest, token = _highest(logits)  # NaN is the highest of all, so one look finds it
    if width:
        assert table is not None
        token = torch.where(table[0] > 0, _draw(logits, table, width), token)
    return torch.where(torch.isfinite(highest), token, -1)


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) the largest of each row (b, vocab), and where it stands.

    In two steps where the vocabulary can be parted: a GPU gives a reduction one block a row.
    """
    rows, vocab = logits.shape
    parts = next((n for n in range(128, 15, -1) if vocab % n == 0), 1)
    values, places = logits.reshape(rows, parts, -1).max(dim=-1)
    highest, part = values.max(dim=-1)
    within = places.gather(1, part.unsqueeze(1)).squeeze(1)
    return highest, part * (vocab // parts) + within


def _draw(logits: Tensor, table: Tensor, width: int) -> Tensor:
    """(b,) tokens drawn after temperature, top_k and top_p, in that order."""
    temperature, top_k, top_p, point = table.unsqueeze(2)
    width = min(width, logits.shape[1])
    logits, index = logits.float().topk(width, dim=1)  # descending
    scaled = (logits - logits[:, :1]) / temperature.clamp(min=1e-6)
    rank = torch.arange(width, device=scaled.device)
    is_candidate = rank < torch.where(top_k > 0, top_k, width)
    mass = scaled.masked_fill(~is_candidate, -torch.inf).softmax(dim=1)
    upto = mass.cumsum(dim=1)
    allowed = (upto - mass < top_p) & is_candidate
    last = allowed.sum(dim=1, keepdim=True).clamp(min=1) - 1
    chosen = (upto <= upto.gather(1, last) * point).sum(dim=1, keepdim=True)
    return index.gather(1, torch.minimum(chosen, last)).squeeze(1)
