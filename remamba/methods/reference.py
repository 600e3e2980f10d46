"""The paper's whole method for one row, in plain torch: no batch, no cache, no pieces.

Read this first. `remamba.py`, `selection.py` and `splice.py` do the same for many rows at once, and
the exactness matrix compares them with it. Numbers in brackets are the paper's equations.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from remamba.compression_config import CompressionConfig
from remamba.model.time_step import Adaption


class TwoStages(NamedTuple):
    """What the second reading gives."""

    logits: Tensor
    """(l', vocab) of the spliced sequence."""
    labels: Tensor | None
    """(l') where they stand in it, -100 at the kept vectors."""
    kept: list[int]
    """Positions in the prompt, ascending."""
    scores: Tensor
    """(m,) of the span."""


def two_stages(
    model: Any,
    ids: Tensor,
    settings: CompressionConfig,
    prompt_length: int | None = None,
    question_length: int = 0,
    labels: Tensor | None = None,
) -> TwoStages:
    """ids (l,) of one row, and labels (l,) -> its spliced sequence, read.

    Args:
        prompt_length: tokens that are prompt; the others are the answer. None: all of them.
        question_length: how many of the prompt's last tokens are the question.
    """
    embeds = model.backbone.embeddings(ids)
    prompt = len(ids) if prompt_length is None else prompt_length
    document = prompt - question_length

    # stage 1: all of the prompt, plainly
    hidden = model.backbone(embeds[None, :prompt])[0]

    # the span: from floor(s L) on ceil(p L) positions, never the last token of the prompt
    start = math.floor(settings.start * document + 1e-9)
    length = max(math.ceil(settings.length * document - 1e-9), 1)
    last = document if settings.placement == "before_question" else min(document, prompt - 1)
    stop = max(start, min(start + length, last))

    # its scores: cos(Key(h_i), Query(h_L)) (3), and which K positions are kept (4)
    compressor = model.compressor
    query = compressor.query_proj(hidden[prompt - 1])
    scores = cosine_similarity(compressor.key_proj(hidden[start:stop]), query[None], dim=-1)
    counted, chosen = choose(scores, settings)
    kept = [start + i for i in chosen]

    # the vectors in their place (5), and what their scores become
    vectors = compressor.value_proj(hidden[kept])
    if settings.value == "residual":
        vectors = vectors + embeds[kept]
    alpha = torch.relu(counted[chosen])
    if settings.importance == "relative":
        alpha = torch.exp(16 * (counted[chosen] - counted[chosen].max()))
    if settings.adaption == "multiplicative":
        vectors = vectors * alpha[:, None]

    # stage 2's sequence (6, 7)
    before, after = {
        "replace": (start, stop),
        "append": (prompt, prompt),
        "before_question": (document, document),
    }[settings.placement]
    sequence = torch.cat([embeds[:before], vectors, embeds[after:]])

    # stage 2: the scores enter the time step at the kept vectors (8)
    adaption = None
    if settings.adaption in ("selective", "exact"):
        rest = len(sequence) - before - len(kept)
        weights = pad(alpha, (before, rest), value=1.0)
        is_kept = pad(torch.ones_like(alpha), (before, rest)).bool()
        adaption = Adaption(weights[None], is_kept[None], settings.adaption == "exact")
    states = model.backbone(sequence[None], adaption=adaption)[0]
    if labels is not None:
        ignored = labels.new_full((len(kept),), -100)
        labels = torch.cat([labels[:before], ignored, labels[after:]])
    return TwoStages(model.lm_head(states), labels, kept, scores)


def choose(scores: Tensor, settings: CompressionConfig) -> tuple[Tensor, list[int]]:
    """The scores (m,) as they count, and which K of the m positions are kept, ascending."""
    m = len(scores)
    wanted = settings.num_kept
    if wanted is None:
        assert settings.keep_ratio is not None
        wanted = max(math.ceil(settings.keep_ratio * m - 1e-9), 1)
    k = min(wanted, m)
    if settings.selector == "fixed":  # the last position of each of K equal parts
        return scores, [math.ceil((j + 1) * m / k) - 1 for j in range(k)]
    if settings.selector == "random":
        return scores, sorted(torch.randperm(m)[:k].tolist())
    # a position counts with the best score of itself and those up to window - 1 behind it
    reach = [
        torch.stack([scores[j] - 1e-6 * (j - i) for j in range(i, min(i + settings.window, m))])
        for i in range(m)
    ]
    counted = torch.stack([ahead.max() for ahead in reach]) if m else scores
    return counted, sorted(counted.topk(k).indices.tolist())
