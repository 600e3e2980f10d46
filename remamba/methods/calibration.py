"""The tables of `filter` and `scale`, made from windows of text for one model.

No labels and no gradients are needed: `filter` looks at the time steps in windows of the trained
length, `scale` at the perplexity of windows of the wanted length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions, run_pass
from remamba.methods.rule_table import LEAST_FACTOR, MOST_FACTOR, RuleTable
from remamba.model.layer_rules import LayerRule, Scaling, StepRule, Steps
from remamba.model.layers import vocabulary_logits
from remamba.pretrained import fingerprint

LENGTHS = (
    1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 32, 40, 48, 60, 72, 84, 96,
)  # fmt: skip
"""Document lengths with thresholds of their own, in trained lengths (published for 2,000 tokens).
Below the first a document is left alone."""
AT_ONCE = 2**22
"""Most numbers of a stretched curve that are computed at once."""
ENOUGH = 5
"""Texts are looked at until there are so many times as many windows as are wanted."""
STARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Factors that are first tried for all layers alike."""
PIECE = 2048
"""Tokens whose logits are computed at once."""

Told = Callable[[int, int], None]
"""Called with the readings that are done, and all there are."""


class _Recorder(LayerRule):
    """Changes nothing; gives each layer's Delta and A to `take`."""

    def __init__(self, take: Callable[[int, Tensor, Tensor], None]):
        self._take = take

    def at(self, layer: int) -> StepRule:
        return _Recorded(layer, self._take)


class _Recorded(StepRule):
    def __init__(self, layer: int, take: Callable[[int, Tensor, Tensor], None]):
        self._layer, self._take = layer, take

    def __call__(self, steps: Steps) -> Steps:
        self._take(self._layer, steps.delta()[0], steps.A)
        return steps


class _Curve:
    """Of one layer: Delta in falling order and the decay over a window, means over windows."""

    def __init__(self) -> None:
        self.count = 0
        self.steps = self.decay = torch.empty(0)

    def add(self, delta: Tensor, A: Tensor, clip: float) -> None:
        """Take a window's delta (T, c): its largest steps count as the least of them."""
        falling = delta.sort(dim=0, descending=True).values
        if clipped := int(clip * len(falling)):
            falling[:clipped] = falling[clipped - 1]
        # decay belongs to a channel and a state in Mamba: the slowest state counts
        slowest = A.max(dim=1).values if A.dim() == 2 else A
        decay = torch.exp(slowest.to(falling.dtype) * falling.sum(dim=0))
        if not self.count:
            self.steps, self.decay = torch.zeros_like(falling), torch.zeros_like(decay)
        self.count += 1
        self.steps += (falling - self.steps) / self.count
        self.decay += (decay - self.decay) / self.count


@torch.no_grad()
def filter_table(
    model: Any, windows: Tensor, *, clip: float, decay: float, told: Told | None = None
) -> RuleTable:
    """Thresholds theta(l) of the channels whose decay over a window is above a bound.

    With D the channel's Delta over a window in falling order (means over windows) and S its sum: D
    is stretched to l points by linear interpolation, k is the first of them at which the running
    sum is above S, and theta(l) is the value at k + 1.

    Args:
        model: a ReMambaForCausalLM or ReMambaModel.
        windows: (n, T) int64 tokens, T the length that the model was trained at.
        clip: the share of a window's largest steps that count as the least of them.
        decay: the bound: a channel with a mean decay exp(max_n A_n S) above it is global.
        told: hears of the progress.

    Raises:
        InputError: a share is outside its range.
    """
    for name, share in (("clip", clip), ("decay", decay)):
        if not 0 <= share < 1:
            raise InputError(f"{name} = {share:g} must be a share from 0 to below 1")
    backbone = model.backbone
    curves = [_Curve() for _ in backbone.layers]

    def take(layer: int, delta: Tensor, A: Tensor) -> None:
        curves[layer].add(delta, A, clip)

    for number, window in enumerate(windows):
        embeds = backbone.embeddings(window[None].to(model.device))
        backbone(embeds, rule=_Recorder(take))
        if told is not None:
            told(number + 1, len(windows))
    lengths = [int(windows.shape[1] * share) for share in LENGTHS]
    layers = []
    for curve in curves:
        channels = (curve.decay > decay).nonzero()[:, 0]
        steps = curve.steps[:, channels]
        thresholds = [thresholds_of(steps, length) for length in lengths] if len(channels) else []
        layers.append({"channels": channels.tolist(), "thresholds": thresholds})
    values = {
        "lengths": lengths, "from_tokens": lengths[0], "channels": curves[0].steps.shape[1],
        "layers": layers,
    }  # fmt: skip
    return RuleTable("filter", fingerprint(model), values)


def thresholds_of(steps: Tensor, length: int) -> list[float]:
    """theta(l) of each channel; steps (T, c) in falling order; l = length, more than T."""
    budget, found = steps.sum(dim=0), []
    at_once = max(1, AT_ONCE // length)
    for first in range(0, steps.shape[1], at_once):
        part = steps[:, first : first + at_once].t()
        curve = F.interpolate(part[None], size=length, mode="linear", align_corners=True)[0]
        above = curve.cumsum(dim=1) > budget[first : first + at_once, None]
        k = above.int().argmax(dim=1)
        theta = curve.gather(1, (k + 1).clamp(max=length - 1)[:, None])[:, 0]
        found += theta.masked_fill(~above.any(dim=1), 0.0).tolist()
    return found


@torch.no_grad()
def scale_table(
    model: Any, windows: Tensor, *, of: str, steps: int, seed: int = 0, told: Told | None = None
) -> RuleTable:
    """A factor for each layer, with which the windows' perplexity is least.

    First one factor for all layers is looked for; from the best of them, factors are moved by
    two-sided random perturbations (SPSA): with d of +-1 for each layer, the k-th step goes from s
    to s - a_k (L(s + c_k d) - L(s - c_k d)) / (2 c_k) d, c_k = 0.1 / (1 + k)^0.1 and
    a_k = 0.001 cos(k pi / (4 steps - 2)), L the perplexity (MambaExtend's constants for
    perplexity). What was best of all that was tried is taken, so that it is never worse than the
    model as it is, on these windows.

    Args:
        model: a ReMambaForCausalLM.
        windows: (n, l) int64 tokens, of the length that is wanted.
        of: what is scaled: steps, A or A_log.
        steps: random steps; each reads all windows three times.
        seed: of the random perturbations.
        told: hears of the progress.
    """
    layers, generator = len(model.backbone.layers), torch.Generator().manual_seed(seed)
    tried: list[tuple[float, list[float]]] = []
    readings = len(STARTS) + 3 * steps

    def perplexity(factors: Tensor) -> float:
        rule = Scaling(factors.tolist(), of)
        found = math.exp(min(_cross_entropy(model, windows, rule), 700.0))
        tried.append((found, factors.tolist()))
        if told is not None:
            told(len(tried), readings)
        return found

    for start in STARTS:
        perplexity(torch.full((layers,), start, dtype=torch.float64))
    now = torch.tensor(min(tried)[1], dtype=torch.float64)
    for k in range(steps):
        direction = torch.randint(2, (layers,), generator=generator).double() * 2 - 1
        c = 0.1 / (1 + k) ** 0.1
        up, down = (_within(now + sign * c * direction) for sign in (1, -1))
        slope = (perplexity(up) - perplexity(down)) / (2 * c)
        now = _within(now - 0.001 * math.cos(k * math.pi / (4 * steps - 2)) * slope * direction)
        perplexity(now)
    best, factors = min(tried)
    made = {"perplexity": {"plain": tried[0][0], "scaled": best}, "readings": len(tried)}
    return RuleTable("scale", fingerprint(model), {"of": of, "factors": factors}, made)


def _within(factors: Tensor) -> Tensor:
    return factors.clamp(LEAST_FACTOR, MOST_FACTOR)


def _cross_entropy(model: Any, windows: Tensor, rule: LayerRule) -> float:
    """Mean cross-entropy of every token behind a window's first, read by a rule."""
    backbone, total = model.backbone, 0.0
    for window in windows:
        ids = window[None].to(model.device)

        def embeds(begin: int, end: int, ids: Tensor = ids) -> Tensor:
            return backbone.embeddings(ids[:, begin:end])

        lengths = torch.tensor([ids.shape[1]])
        pieces = run_pass(backbone, embeds, lengths, None, PassOptions(PIECE), rule=rule)
        for begin, hidden in pieces:
            targets = ids[0, begin + 1 : begin + 1 + hidden.shape[1]]
            if len(targets):
                logits = vocabulary_logits(model.lm_head, hidden[0, : len(targets)])
                total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def windows_of(texts: Iterable[Sequence[int]], length: int, most: int) -> Tensor:
    """(n, length) int64, at most so many windows of the texts' tokens.

    They are chosen evenly from as many texts as have ENOUGH times so many; no more are looked at.

    Raises:
        InputError: no text is long enough.
    """
    found: list[Sequence[int]] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text))
        found += [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
        if len(found) >= ENOUGH * most:
            break
    if not found:
        raise InputError(
            f"no text has {length:,} tokens for a window (the longest has {longest:,}); give "
            "longer texts, or shorter windows (--window-tokens)"
        )
    count = min(most, len(found))
    return torch.tensor([found[number * len(found) // count] for number in range(count)])
