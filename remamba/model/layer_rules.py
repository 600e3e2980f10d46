"""Rules that change a layer's time steps before its scan, in prefill and in decoding alike.

A `LayerRule` is bound to the rows of one pass. The backbone asks it for each layer's `StepRule`,
which the mixer applies to its `Steps`. States that a rule has written keep what the next tokens
have to be read by (`StateCache.rule`), so that no way of decoding can forget it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from remamba.model.rows import past_end, take_positions, to_device
from remamba.ops.precision import accumulation_dtype
from remamba.ops.time_step.lengths import time_step

NEVER = -1e4
"""A dt whose softplus is 0 in every dtype; minus infinity would make NaN where it meets a 0."""
KINDS = ("steps", "A", "A_log")
"""What `Scaling` multiplies: Delta, A, or A_log, for which A becomes -|A|^s."""


class Steps(NamedTuple):
    """The time steps of a layer as its scan gets them; c is e in Mamba and h in Mamba-2."""

    dt: Tensor
    """(b, l, c) before softplus."""
    A: Tensor
    """(e, n) or (h,)."""
    scale: Tensor | None
    """(b, l) factor after softplus, 0 at a pad; None when all are 1."""
    bias: Tensor | None
    """(c,) what the scan adds to dt; None where dt holds it."""
    limit: tuple[float, float]
    """Bounds of Delta after softplus."""

    def delta(self) -> Tensor:
        """(b, l, c) Delta without the factor `scale`, float32 at least."""
        return time_step(self.dt, self.bias, None, accumulation_dtype(self.dt), self.limit)

    def without(self, positions: Tensor) -> Steps:
        """With a Delta of 0 at the positions (b, l) bool: they leave the state as it is."""
        kept = (~positions).to(accumulation_dtype(self.dt))
        return self._replace(scale=kept if self.scale is None else self.scale * kept)


class StepRule:
    """What a rule makes of one layer's steps."""

    kept: Tensor | None = None
    """(b, k) the positions that layers behind this one read, set by the call; None: all."""
    lengths: Tensor | None = None
    """(b,) how many of `kept` are real; on the host."""

    def __call__(self, steps: Steps) -> Steps:
        raise NotImplementedError


class LayerRule:
    """What becomes of the steps of every layer, in the rows of one pass."""

    @property
    def behind(self) -> Scaling | None:
        """The rule for what is read behind these rows: later tokens, and decoding."""
        return None

    def piece(self, begin: int, end: int) -> LayerRule:
        """The rule for the positions from `begin` on and before `end`."""
        raise NotImplementedError

    def at(self, layer: int) -> StepRule | None:
        """The rule of one layer; None where its steps stay as they are."""
        raise NotImplementedError


class Scaling(LayerRule):
    """One factor s for each layer: Delta becomes s Delta, A becomes s A, or A becomes -|A|^s.

    It holds for any rows at any position, so it goes on in decoding.
    """

    def __init__(self, factors: Sequence[float], kind: str):
        assert kind in KINDS, kind
        self.factors, self.kind = tuple(factors), kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaling) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[tuple[float, ...], str]:
        return self.factors, self.kind

    @property
    def behind(self) -> Scaling:
        return self

    def piece(self, begin: int, end: int) -> Scaling:
        return self

    def at(self, layer: int) -> StepRule | None:
        factor = self.factors[layer]
        return None if factor == 1 else _Scaled(factor, self.kind)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The rule by name, as it is written beside the states that need it."""
        factors = torch.tensor(self.factors, dtype=torch.float64)
        return {f"{prefix}rule.{self.kind}": factors}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str) -> Scaling | None:
        """What `tensors` gave; None where there is no rule among them."""
        for kind in KINDS:
            if (factors := tensors.get(f"{prefix}rule.{kind}")) is not None:
                return cls(factors.double().flatten().tolist(), kind)
        return None


class _Scaled(StepRule):
    def __init__(self, factor: float, kind: str):
        self._factor, self._kind = factor, kind

    def __call__(self, steps: Steps) -> Steps:
        s = self._factor
        if self._kind == "A":
            return steps._replace(A=s * steps.A)
        if self._kind == "A_log":
            return steps._replace(A=-(steps.A.abs() ** s))
        if steps.scale is not None:
            return steps._replace(scale=s * steps.scale)
        scale = torch.full(
            steps.dt.shape[:2], s, dtype=accumulation_dtype(steps.dt), device=steps.dt.device
        )
        return steps._replace(scale=scale)


class Filtering(LayerRule):
    """Delta becomes 0 where it is not above its channel's threshold, before a row's `stop`.

    Args:
        thresholds: of each layer (b, c) float32, negative for a channel that is left alone; None
            for a layer that is.
        stop: (b,) the first position that is left alone; on the host.
    """

    def __init__(self, thresholds: Sequence[Tensor | None], stop: Tensor, begin: int = 0):
        self._thresholds, self._stop, self._begin = thresholds, stop, begin

    def piece(self, begin: int, end: int) -> Filtering:
        return Filtering(self._thresholds, self._stop, self._begin + begin)

    def at(self, layer: int) -> StepRule | None:
        thresholds, stop = self._thresholds[layer], self._stop - self._begin
        if thresholds is None or not bool((stop > 0).any()):
            return None
        return _Filtered(thresholds, stop)


class _Filtered(StepRule):
    def __init__(self, thresholds: Tensor, stop: Tensor):
        self._thresholds, self._stop = thresholds, stop

    def __call__(self, steps: Steps) -> Steps:
        dt = steps.dt
        weak = steps.delta() <= to_device(self._thresholds, dt.device)[:, None]
        weak &= ~past_end(self._stop.clamp(min=0), dt.shape[1], dt.device)[..., None]
        return steps._replace(dt=dt.masked_fill(weak, NEVER))


class Decimating(LayerRule):
    """In some layers the weakest tokens leave the sequence, for all layers that follow.

    A token's strength is the Euclidean norm of its Delta over the channels. Of the first `free`
    tokens of a row, the strongest stay, in their order; those behind them always do.

    Args:
        most: layer -> how many of them stay at most.
        free: (b,) how many tokens may leave at all; on the host.
        lengths: (b,) real tokens; on the host.
    """

    def __init__(self, most: dict[int, int], free: Tensor, lengths: Tensor):
        self._layers: dict[int, _Decimated] = {}
        for layer in sorted(most):
            staying = free.clamp(max=most[layer])
            if bool((staying < free).any()):
                self._layers[layer] = _Decimated(free, staying, lengths)
                lengths = lengths - free + staying
                free = staying
        self.lengths = lengths
        """(b,) tokens that are left behind the last layer; on the host."""

    def piece(self, begin: int, end: int) -> Decimating:
        assert begin == 0, "which tokens leave is known when all of them have been read"
        return self

    def at(self, layer: int) -> StepRule | None:
        return self._layers.get(layer)

    def index(self) -> Tensor | None:
        """(b, k) the positions that are left, once the rows have been read; None: all."""
        found: Tensor | None = None
        for layer in self._layers.values():
            assert layer.kept is not None, "the rows have not been read"
            found = layer.kept if found is None else take_positions(found, layer.kept)
        return found


class _Decimated(StepRule):
    def __init__(self, free: Tensor, staying: Tensor, lengths: Tensor):
        self._free, self._staying = free, staying
        self.lengths = lengths - free + staying

    def __call__(self, steps: Steps) -> Steps:
        device, (b, width) = steps.dt.device, steps.dt.shape[:2]
        strength = torch.linalg.vector_norm(steps.delta().detach(), dim=-1)
        bound = past_end(self._free, width, device)
        strength = strength.masked_fill(bound, -1)
        ranked = strength.argsort(dim=1, descending=True, stable=True)
        weak = past_end(self._staying, width, device)
        leaving = torch.zeros_like(bound).scatter_(1, ranked, weak) & ~bound
        # those that leave are put behind all others, and cut off
        column = torch.arange(width, device=device).expand(b, -1)
        order = torch.where(leaving, column + width, column).sort(dim=1).values % width
        assert self.lengths is not None
        self.kept = order[:, : int(self.lengths.max())]
        return steps.without(leaving)
