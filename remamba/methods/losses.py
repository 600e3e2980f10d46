"""The losses of training: on the answer, on the document's text, and on the score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remamba.errors import InputError
from remamba.methods.base import Passage
from remamba.methods.selection import EPS, SCORE_LOSS_SCALE, Compressor
from remamba.model.rows import IGNORE, Batch, cut, ignore_pads, past_end
from remamba.ops import cross_entropy
from remamba.ops.precision import accumulation_dtype

SCORE_NEGATIVES = ("document", "batch")


def answer_loss(
    lm_head: nn.Module,
    hidden: Tensor,
    labels: Tensor | None,
    num_items: Tensor | int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy at labelled positions, and which rows are right throughout, (b,) bool.

    Args:
        hidden: (b, l, d); position i predicts labels[:, i + 1].
        labels: (b, l), IGNORE where there is no loss.
        num_items: what the sum is divided by in place of the number of labelled positions.
    """
    assert labels is not None
    hidden, labels = hidden[:, : labels.shape[1] - 1], labels[:, 1:]
    labelled = labels != IGNORE
    target = labels[labelled]
    right = labelled.new_zeros(labels.shape)
    if not target.numel():
        return hidden.sum() * 0, right.any(dim=1)
    rows = hidden.flatten(0, 1).index_select(0, labelled.flatten().nonzero()[:, 0])
    losses, right[labelled] = cross_entropy(lm_head(rows), target)
    loss = losses.sum() / (target.numel() if num_items is None else num_items)
    return loss, (right == labelled).all(dim=1) & labelled.any(dim=1)


def document_loss(lm_head: nn.Module, documents: Batch, states: Tensor) -> Tensor:
    """Next-token loss of the documents; states (documents, l, d) are stage 1's."""
    if documents.input_ids is None:
        raise InputError("with_document_loss needs the documents as token ids")
    ids = documents.input_ids[:, : states.shape[1]]
    return answer_loss(lm_head, states, ignore_pads(ids, documents.lengths))[0]


def score_loss(
    scores: Tensor, targets: Tensor, length: Tensor, elsewhere: Tensor | None = None
) -> Tensor:
    """Loss on the score: minus the log of the mass that softmax(16 * cosine) has on the targets.

    With one target a row it is the cross-entropy against the evidence; with several (all places
    where the answer occurs) any of them serves. Several things that must all be found have their
    targets apart: the loss of a row is the mean of theirs.

    Args:
        scores: (b, m) cosines over the span.
        targets: (b, m) bool, or (b, m, n) for n things to be found; a thing without a target
            does not count.
        length: (b,) real positions of the span.
        elsewhere: (b,) log-mass of each question on the batch's other documents
            (`mass_elsewhere`); its mass is added to the denominator of the softmax.

    Returns:
        Scalar, the mean over rows that have a target; 0 when none has.
    """
    # an empty row keeps one position, so that its softmax stays finite
    outside = past_end(length.clamp(min=1), scores.shape[1], scores.device)
    logits = (SCORE_LOSS_SCALE * scores).masked_fill(outside, -torch.inf)
    log_mass = logits.log_softmax(dim=1)
    if elsewhere is not None:
        log_mass = log_mass - F.softplus(elsewhere - logits.logsumexp(dim=1))[:, None]
    targets = targets if targets.dim() == 3 else targets[..., None]
    targets = targets & ~past_end(length, scores.shape[1], scores.device)[..., None]
    has_target = targets.any(dim=1)
    # what has no target gets a harmless one, so that no -inf enters the backward pass
    targets = targets | (~has_target[:, None] & ~outside[..., None])
    loss = -log_mass[..., None].masked_fill(~targets, -torch.inf).logsumexp(dim=1)
    loss = torch.where(has_target, loss, 0).sum(dim=1) / has_target.sum(dim=1).clamp(min=1)
    return loss.sum() / has_target.any(dim=1).sum().clamp(min=1)


def mass_elsewhere(
    compressor: Compressor, hidden: Tensor, last_hidden: Tensor, length: Tensor
) -> Tensor:
    """Log of the sum of exp(16 * score) of each question on the other documents' spans, (b,).

    Args:
        hidden: (documents, m, d) states of the spans; two documents at least.
        last_hidden: (b, d), the questions in the documents' order.
        length: (documents,) real positions of each span.
    """
    documents, m = hidden.shape[:2]
    query = compressor.query_proj(last_hidden)
    query = F.normalize(query.to(accumulation_dtype(query)), dim=-1, eps=EPS)
    keys = F.normalize(compressor.key_proj(hidden).to(query.dtype), dim=-1, eps=EPS)
    logits = (SCORE_LOSS_SCALE * (query @ keys.flatten(0, 1).T)).view(len(query), documents, m)
    owner = torch.arange(len(query), device=query.device) // (len(query) // documents)
    own = F.one_hot(owner, documents).bool()[..., None]
    outside = own | past_end(length, m, query.device)
    # not -inf: where all other spans are empty the gradient stays finite
    lowest = torch.finfo(logits.dtype).min / 2
    return logits.masked_fill(outside, lowest).flatten(1).logsumexp(dim=1)


def passage_score_loss(
    compressor: Compressor, passage: Passage, targets: Tensor, negatives: str
) -> Tensor:
    """Loss of the scores over each row's span; targets (b, l[, n]) lie over rows or documents.

    Args:
        negatives: "document" | "batch", see `ReMambaForCausalLM.forward`.
    """
    if negatives not in SCORE_NEGATIVES:
        raise InputError(
            f"score_negatives={negatives!r} is unknown; choose one of {', '.join(SCORE_NEGATIVES)}"
        )
    assert passage.scores is not None and passage.reading is not None
    scores, reading = passage.scores, passage.reading
    span = reading.span
    repeats = scores.shape[0] // span.start.shape[0]
    start = span.start.repeat_interleave(repeats)
    length = span.length.repeat_interleave(repeats)
    if scores.shape[1] == 0:
        return scores.sum()
    if targets.shape[0] != scores.shape[0] or targets.shape[1] < int((start + length).max()):
        raise InputError(
            f"score_targets is {tuple(targets.shape)}; it must cover the span of {len(scores)} rows"
        )
    elsewhere = None
    if negatives == "batch" and len(reading.hidden) > 1:
        elsewhere = mass_elsewhere(compressor, reading.hidden, reading.last_hidden, span.length)
    return score_loss(scores, cut(targets, start, scores.shape[1]), length, elsewhere)
