"""Stage 2's sequence (Eq. 6-7): the kept vectors in place of the span, and their time steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from remamba.compression_config import CompressionConfig
from remamba.methods.selection import Kept, importance
from remamba.model.rows import Batch, take_positions, to_device
from remamba.model.time_step import Adaption


class Splice(NamedTuple):
    """The plan of stage 2's sequence: where each of its positions is taken from."""

    index: Tensor  # type: ignore[assignment]
    """(b, l') position in the prompt's row; meaningless where a kept vector stands."""
    rank: Tensor
    """(b, l') which kept vector stands here; -1 where a prompt token does."""
    lengths: Tensor
    """(b,) real positions of each row; on the host."""
    between: tuple[int, int]
    """(begin, end) of the range in which the kept vectors of all rows stand."""

    def to(self, device: torch.device) -> Splice:
        """The same plan with its positions on the device."""
        index, rank = to_device(torch.stack([self.index, self.rank]), device)
        return self._replace(index=index, rank=rank)


def plan_splice(lengths: Tensor, at: Tensor, removed: Tensor, kept: Tensor) -> Splice:
    """Stage 2's sequence (Eq. 6-7): all before `at`, K kept vectors, all from at + removed on.

    It is planned on the host while the device is still reading, which takes one copy instead of
    many kernel launches.

    Args:
        lengths: (b,) tokens of each row.
        at: (b,) where the kept vectors go in.
        removed: (b,) how many prompt tokens they replace there; 0 when they are only inserted.
        kept: (b,) K.
    """
    spliced = lengths - removed + kept
    longest = int(spliced.max()) if spliced.numel() else 0
    between = (int(at.min()), int((at + kept).max())) if spliced.numel() else (0, 0)
    rank = torch.arange(longest) - at[:, None]
    is_kept = (rank >= 0) & (rank < kept[:, None])
    index = torch.arange(longest) + torch.where(rank < 0, 0, (removed - kept)[:, None])
    index = torch.minimum(index.clamp(min=0), (lengths[:, None] - 1).clamp(min=0))
    return Splice(index, torch.where(is_kept, rank, -1), spliced, between)


def splice(embeds: Tensor, plan: Splice, kept: Kept, begin: int = 0) -> Tensor:
    """Stage 2's input embeddings (Eq. 6-7): the kept vectors where they stand, `embeds` elsewhere.

    Args:
        embeds: (b, n, d) prompt embeddings already taken at Splice.index, from `begin` on; without
            gradients they are written to.
    """
    end = begin + embeds.shape[1]
    low, high = (min(max(place, begin), end) for place in plan.between)
    if low >= high or kept.values.shape[1] == 0:
        return embeds
    if torch.is_grad_enabled():
        low, high = begin, end
    rank = plan.rank[:, low:high]
    values = take_positions(kept.values, rank.clamp(min=0)).to(embeds.dtype)
    there = embeds[:, low - begin : high - begin]
    spliced = torch.where((rank >= 0).unsqueeze(-1), values, there)
    if torch.is_grad_enabled():
        return spliced
    there.copy_(spliced)
    return embeds


def spliced_embeds(
    batch: Batch, embeddings: nn.Module, plan: Splice, kept: Kept
) -> Callable[[int, int], Tensor]:
    """(begin, end) -> (b, end - begin, d), the embeddings of stage 2's sequence there (Eq. 6-7)."""

    def embeds(begin: int, end: int) -> Tensor:
        given = batch.take(embeddings, plan.index[:, begin:end])
        return splice(given, plan, kept, begin)

    return embeds


def plan_adaption(plan: Splice, kept: Kept, compression: CompressionConfig) -> Adaption | None:
    """What the mixers change at the kept positions; None if this adaption leaves dt unchanged."""
    if compression.adaption not in ("selective", "exact") or kept.values.shape[1] == 0:
        return None
    selected = plan.rank >= 0
    alpha = importance(kept.scores, kept.lengths, compression)
    alpha = alpha.gather(1, plan.rank.clamp(min=0))
    return Adaption(torch.where(selected, alpha, 1.0), selected, compression.adaption == "exact")
