"""The selection after stage 1: the span, its scores and the kept vectors (Eq. 3-5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remamba.compression_config import CompressionConfig
from remamba.execution.steps import Steps
from remamba.model.rows import past_end, take_positions, to_device
from remamba.ops.precision import accumulation_dtype

ROUNDING = 1e-9
"""Products such as 0.07 * 100 = 7.000000000000001 are rounded as 7, not up to 8."""
SCORE_LOSS_SCALE = 16.0
WINDOW_STEP = 1e-6
"""Penalty per position when a score is propagated backwards through its window; it breaks ties
towards the nearer token."""
EPS = 1e-8
"""Least norm of a key or a query that a cosine divides by."""
SCORED_AT_ONCE = 8192
"""Most positions of a span whose keys are in memory at one time, where gradients are off."""


class Span(NamedTuple):
    """The positions to compress, one range a row: 0-based, half-open; on the host."""

    start: Tensor
    """(b,) int64."""
    stop: Tensor
    """(b,) int64; equal to `start` where nothing is compressed."""

    @property
    def length(self) -> Tensor:
        return self.stop - self.start


class Kept(NamedTuple):
    """The kept positions of each row, in ascending order, padded on the right."""

    index: Tensor  # type: ignore[assignment]
    """(b, k) int64, counted from the row's first real token (of the document, if there is one)."""
    scores: Tensor
    """(b, k) cosine of Key and Query (Eq. 3); with a window the best in it."""
    values: Tensor
    """(b, k, d) the vectors that stand in the span's place (Eq. 5)."""
    lengths: Tensor
    """(b,) how many of the k are real."""

    def select(self, index: Tensor) -> Kept:
        """The rows `index` (n,)."""
        return Kept(*(tensor.index_select(0, index.to(tensor.device)) for tensor in self))

    def to(self, device: torch.device | str) -> Kept:
        return Kept(*(tensor.to(device) for tensor in self))

    def rows(self) -> list[list[tuple[int, float]]]:
        """Position and score of every kept token, one list a row."""
        index, scores, lengths = self.index.tolist(), self.scores.tolist(), self.lengths.tolist()
        return [
            list(zip(i[:n], s[:n], strict=True))
            for i, s, n in zip(index, scores, lengths, strict=True)
        ]


def span_bounds(lengths: Tensor, limit: Tensor, compression: CompressionConfig) -> Span:
    """The positions to compress, 0-based: start = floor(s L), length = max(ceil(p L), 1).

    It is computed on the host, where the lengths are, so that the size of stage 2's sequence is
    known before stage 1 has run.

    Args:
        lengths: (b,) tokens of each prompt, or of its document if the question stands apart [L].
        limit: (b,) first position that must not be compressed (the last prompt token, or the
            question); the span is cut there.

    """
    exact = lengths.double()
    start = torch.floor(compression.start * exact + ROUNDING).long()
    length = torch.ceil(_by_row(compression.spans) * exact - ROUNDING).long().clamp(min=1)
    stop = torch.minimum(start + length, limit)
    return Span(start, torch.maximum(start, stop))


def num_kept(span: Span, compression: CompressionConfig) -> Tensor:
    """K = max(ceil(rho * length), 1) of each row, (b,) int64; 0 where the span is empty."""
    length = span.length
    if compression.num_kept is None:
        shares = compression.keep_ratios
        assert shares is not None, "neither K nor rho"
        exact = _by_row(shares) * length.double()
        kept = torch.ceil(exact - ROUNDING).long().clamp(min=1)
    else:
        kept = torch.full_like(length, compression.num_kept)
    return torch.minimum(kept, length)


def _by_row(share: float | tuple[float, ...]) -> Tensor:
    """A share for all rows, (), or one for each, (b,); float64."""
    return torch.tensor(share, dtype=torch.float64)


class _ScaleGradient(torch.autograd.Function):
    """Identity whose backward multiplies by its own value."""

    @staticmethod
    def forward(ctx, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(alpha)
        return alpha.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (alpha,) = ctx.saved_tensors
        return gradient * alpha


def importance(scores: Tensor, lengths: Tensor, compression: CompressionConfig) -> Tensor:
    """(b, k) alpha of the kept vectors; its gradient is multiplied by alpha, as the paper has it.

    ReLU(score) (Eq. 8), or, where `importance` is "relative", what softmax(16 * score), the score
    loss's own distribution, gives to a vector over what it gives to the best one.

    Args:
        scores: (b, k) of the kept positions.
        lengths: (b,) how many of the k are real; alpha means nothing at the others.
    """
    if compression.importance == "relative" and scores.shape[1]:
        pad = past_end(lengths, scores.shape[1], scores.device)
        best = scores.masked_fill(pad, -torch.inf).amax(dim=1, keepdim=True)
        alpha = (SCORE_LOSS_SCALE * (scores - best)).masked_fill(pad, 0.0).exp()
    else:
        alpha = torch.relu(scores)
    return _ScaleGradient.apply(alpha) if alpha.requires_grad else alpha


def _feed_forward(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))


class Compressor(nn.Module):
    """Query, Key and Value: which hidden states of the span are kept, and what they become."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.query_proj = _feed_forward(hidden_size)
        self.key_proj = _feed_forward(hidden_size)
        self.value_proj = _feed_forward(hidden_size)
        self.tie_query()

    def tie_query(self) -> None:
        """Give Query a copy of Key's values (preset "tied"): scores then start well above zero."""
        self.query_proj.load_state_dict(self.key_proj.state_dict())

    def scores(self, hidden: Tensor, last_hidden: Tensor) -> Steps[Tensor]:
        """Importance scores (Eq. 3): cosine of Key(h_i) and Query(h_L), float32 at least.

        It stops behind every SCORED_AT_ONCE positions, unless gradients are on.

        Args:
            hidden: (b, m, d) last-layer states of the span [h_i].
            last_hidden: (b * n, d) of the last prompt token [h_L]; n questions a document.

        Returns:
            (b * n, m).
        """
        query = self.query_proj(last_hidden)
        query = query.to(accumulation_dtype(query))
        query = query.view(hidden.shape[0], -1, query.shape[-1])
        size = max(hidden.shape[1], 1) if torch.is_grad_enabled() else SCORED_AT_ONCE
        pieces = []
        for h in hidden.split(size, dim=1):
            pieces.append(_cosines(self.key_proj(h).to(query.dtype), query))
            yield h.shape[0] * h.shape[1]
        return torch.cat(pieces, dim=2).flatten(0, 1)

    def keep(
        self,
        hidden: Tensor,
        scores: Tensor,
        span: Span,
        compression: CompressionConfig,
        embeddings: Callable[[Tensor], Tensor] | None = None,
    ) -> Kept:
        """The K kept positions in ascending order and their vectors (Eq. 4-5).

        Args:
            hidden: (b, m, d) states of the span.
            scores: (b * n, m).
            span: of the b documents.
            embeddings: of the tokens at positions (b * n, k) of the rows, (b * n, k, d); only the
                residual value asks for them.
        """
        documents, device = hidden.shape[0], scores.device
        per_document = scores.shape[0] // documents
        length = span.length.repeat_interleave(per_document)
        kept_lengths = num_kept(span, compression).repeat_interleave(per_document)
        if compression.window > 1:
            scores = _best_ahead(scores, length, compression.window)
        index = _select(scores.detach(), length, kept_lengths, compression.selector)
        k = index.shape[1]
        kept_scores = scores.gather(1, index)
        values = take_positions(hidden, index.view(documents, -1)).unflatten(1, (per_document, k))
        values = self.value_proj(values.flatten(0, 1))
        if bool(span.start.any()):
            start = span.start.repeat_interleave(per_document)
            index = index + to_device(start, device)[:, None]
        if compression.value == "residual":
            assert embeddings is not None, "the residual value is a sum with the tokens' embeddings"
            values = values + embeddings(index).to(values.dtype)
        if compression.adaption == "multiplicative":
            alpha = importance(kept_scores, kept_lengths, compression)
            values = values * alpha.unsqueeze(-1).to(values.dtype)
        if bool((kept_lengths < k).any()):
            pad = past_end(kept_lengths, k, device)
            index, kept_scores = index.masked_fill(pad, 0), kept_scores.masked_fill(pad, 0)
        return Kept(index, kept_scores, values, to_device(kept_lengths, device))


def _cosines(keys: Tensor, query: Tensor) -> Tensor:
    """keys (b, m, d), query (b, n, d) -> (b, n, m); divides the products, not the keys."""
    size = torch.linalg.vector_norm(keys, dim=-1).clamp(min=EPS)
    query = F.normalize(query, dim=-1, eps=EPS)
    return (query @ keys.transpose(1, 2)) / size.unsqueeze(1)


def _best_ahead(scores: Tensor, length: Tensor, window: int) -> Tensor:
    """(b, m) the best of each position's score and those of the window - 1 positions behind it.

    A score loses WINDOW_STEP with each position. This puts equal scores in an order, so that
    where K ends inside a window the positions next to the token found are kept.
    """
    outside = past_end(length, scores.shape[1], scores.device)
    own = scores.masked_fill(outside, -torch.inf)
    best = own
    for back in range(1, window):
        later = F.pad(own, (0, back), value=-torch.inf)[:, back:]
        best = torch.maximum(best, later - back * WINDOW_STEP)
    return best.masked_fill(outside, 0.0)


def _select(scores: Tensor, length: Tensor, kept: Tensor, selector: str) -> Tensor:
    """Which K of the span's positions are kept (Eq. 4): (b, k), ascending; 0 beyond a row's K."""
    rows, m = scores.shape
    k = int(kept.max()) if rows else 0
    if selector == "fixed":  # the last position of each of K equal parts
        parts = kept[:, None].clamp(min=1)
        index = ((torch.arange(k) + 1) * length[:, None] + parts - 1) // parts - 1
        index = to_device(index, scores.device)
    else:
        order = torch.rand_like(scores) if selector == "random" else scores
        if bool((length < m).any()):
            order = order.masked_fill(past_end(length, m, scores.device), -torch.inf)
        index = order.topk(k, dim=1, sorted=bool((kept < k).any())).indices
    if bool((kept < k).any()):
        pad = past_end(kept, k, scores.device)
        return index.masked_fill(pad, m).sort(dim=1).values.masked_fill(pad, 0)
    return index.sort(dim=1).values
