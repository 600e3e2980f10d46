"""How the next token is chosen: greedily, or drawn by each request's own random numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remamba.errors import InputError


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
    seed: int = 0
    ignore_eos: bool = False
    """Go on after an end-of-text token (for measurements)."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
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


class Sampler:
    """The options of one request and its own random numbers, so that no other request matters."""

    def __init__(self, options: SamplingOptions):
        self.options = options
        self._random = random.Random(options.seed)

    def draw(self) -> float:
        """The next random number in [0, 1)."""
        return self._random.random()


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row; None where its logits are not finite.

    Args:
        logits: (b, vocab).
        samplers: one a row.
    """
    highest, token = logits.max(dim=-1)  # NaN is the highest of all, so one look finds it
    drawn = [row for row, sampler in enumerate(samplers) if sampler.options.temperature > 0]
    if drawn:
        token[drawn] = _draw(logits[drawn], [samplers[row] for row in drawn])
    finite = torch.isfinite(highest).tolist()
    return [t if ok else None for t, ok in zip(token.tolist(), finite, strict=True)]


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """(b,) tokens drawn after temperature, top_k and top_p, in that order."""
    options = [sampler.options for sampler in samplers]
    vocab = logits.shape[1]
    limits = [min(o.top_k, vocab) if o.top_k else vocab for o in options]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits.device).unsqueeze(1)

    logits, index = logits.float().topk(max(limits), dim=1)  # descending
    scaled = (logits - logits[:, :1]) / column([max(o.temperature, 1e-6) for o in options])
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    mass = scaled.masked_fill(rank >= column(limits), -torch.inf).softmax(dim=1)
    upto = mass.cumsum(dim=1)
    allowed = (upto - mass < column([o.top_p for o in options])) & (rank < column(limits))
    last = allowed.sum(dim=1, keepdim=True).clamp(min=1) - 1
    point = upto.gather(1, last) * column([sampler.draw() for sampler in samplers])
    chosen = (upto <= point).sum(dim=1, keepdim=True)
    return index.gather(1, torch.minimum(chosen, last)).squeeze(1)
