"""How likely the model holds tokens to be: those that were drawn, and those of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from remamba.errors import InputError

MOST_LIKELIEST = 20
"""Most of the likeliest tokens that are told for a position."""


class TokenLogprob(NamedTuple):
    """A token's log-probability, before temperature, top_k, top_p and forbidden tokens."""

    token_id: int
    logprob: float
    """Natural logarithm of the probability that the model gives the token at its place."""
    likeliest: tuple[tuple[int, float], ...]
    """As many of the likeliest tokens there as were asked for, the likeliest first."""


def check_likeliest(name: str, count: int | None) -> None:
    """Raise InputError unless so many of the likeliest tokens can be told; None: nothing is."""
    if count is not None and not 0 <= count <= MOST_LIKELIEST:
        raise InputError(f"{name} = {count} is outside [0, {MOST_LIKELIEST}]")


def likelihoods(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """(..., 1 + 2 n) float32: the token's log-probability, the n likeliest tokens, and theirs.

    n is `count`, or the vocabulary's size if that is less. It waits for nothing, so that a CUDA
    graph can hold it. Token ids below 2**24 are exact in float32.

    Args:
        logits: (..., vocab).
        tokens: (...) int64; below 0 where there is none.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, tokens.clamp(min=0).unsqueeze(-1))
    values, index = logprobs.topk(min(count, logits.shape[-1]), dim=-1)
    return torch.cat([own, index.float(), values], dim=-1)


def told(row: Sequence[float], token: int, count: int) -> TokenLogprob:
    """A row of `likelihoods`, with the first `count` of the likeliest tokens."""
    most = (len(row) - 1) // 2
    count = min(count, most)
    pairs = zip(row[1 : 1 + count], row[1 + most : 1 + most + count], strict=True)
    return TokenLogprob(token, row[0], tuple((int(index), value) for index, value in pairs))
