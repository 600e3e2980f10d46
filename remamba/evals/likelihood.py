"""How likely a model finds a text behind a prompt; right for compressed prompts too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from remamba.bare_model import BaseReMamba
from remamba.execution.passes import PassOptions, check_finite
from remamba.execution.steps import finish
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.model.layers import vocabulary_logits
from remamba.model.rows import pad_rows

BATCH_TOKENS = 8192
"""Most positions of a batch, pads included."""


class Pair(NamedTuple):
    """The tokens of a prompt, at least one, and of what follows it, at least one."""

    prompt: Sequence[int]
    continuation: Sequence[int]


@torch.inference_mode()
def log_likelihoods(
    model: Any, pairs: Sequence[Pair], method: Method | None = None
) -> list[tuple[float, bool]]:
    """For each pair the log-probability of the continuation, and whether it is the greedy one.

    A ReMamba compresses the prompt alone, as when it writes: the continuation is read behind it.

    Args:
        model: a ReMamba, or any causal model of transformers.
        method: how a ReMamba reads the prompt; None: plainly.
    """
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    is_ours = isinstance(model, BaseReMamba)
    for group in _groups(pairs, BATCH_TOKENS if is_ours else 0):
        rows = [[*pairs[i].prompt, *pairs[i].continuation] for i in group]
        ids, mask = pad_rows(rows)
        longest = max(len(pairs[i].continuation) for i in group)
        if is_ours:
            prompts = torch.tensor([len(pairs[i].prompt) for i in group])
            batch = model.enter(ids, mask, None, None, prompts)
            options = PassOptions(tail=longest + 1)
            hidden = finish(model.passing(batch, method or Plain(), None, None, options)).hidden
            logits = vocabulary_logits(model.lm_head, hidden)
            check_finite(logits)
        else:
            logits = model(ids.to(model.device)).logits[:, -longest - 1 :]
        for at, i in enumerate(group):
            wanted = torch.tensor(pairs[i].continuation, device=logits.device)
            scores = logits[at, -len(wanted) - 1 : -1].float().log_softmax(-1)
            total = scores.gather(-1, wanted[:, None]).double().sum()
            found[i] = (float(total), bool((scores.argmax(-1) == wanted).all()))
    return found


def _groups(pairs: Sequence[Pair], tokens: int) -> Iterator[list[int]]:
    """Pairs of similar length, the longest first; each alone where it has `tokens` or more."""
    lengths = [len(pair.prompt) + len(pair.continuation) for pair in pairs]
    group: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
