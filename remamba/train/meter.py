"""Meter: sums over steps that stay on the device until someone asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remamba.modeling_base import ReMambaOutput

PARTS = ("loss", "answer_loss", "stage1_loss", "score_loss", "document_loss", "grad_norm")
"""Averaged over the steps that have them."""
SHARES = ("accuracy", "stage1_accuracy", "found")
"""Right rows over all rows: the last stage, stage 1, and the best score standing on a target."""


class Meter:
    """What training reports: losses, accuracies, tokens and time.

    Nothing is read from the device before `report`, so that the device never waits for the host.

    Args:
        device: where the sums are kept.
        window: steps that `recent_accuracy` looks back.
    """

    def __init__(self, device: torch.device, window: int):
        self.device = device
        self._names = [*PARTS, *(f"{s}_{side}" for s in SHARES for side in ("right", "rows"))]
        self._sums = torch.zeros(len(self._names), device=device)
        self._zero = torch.zeros((), device=device)
        self._counts = dict.fromkeys(PARTS, 0)
        self._recent = torch.zeros(window, 2, device=device)
        self._recent_steps = 0
        self.tokens = 0
        self.seconds = 0.0

    def add(
        self,
        parts: dict[str, Tensor | None],
        shares: dict[str, tuple[Tensor, Tensor] | None],
        tokens: int,
    ) -> None:
        """Adds one forward pass: scalars, and (right rows, rows) pairs of scalars."""
        values = {name: value.detach() for name, value in parts.items() if value is not None}
        for name in values:
            self._counts[name] += 1
        for name, pair in shares.items():
            if pair is not None:
                values[f"{name}_right"], values[f"{name}_rows"] = pair
        self._sums += torch.stack([values.get(n, self._zero).float() for n in self._names])
        if "accuracy_right" in values:
            place = self._recent_steps % len(self._recent)
            self._recent[place, 0] = values["accuracy_right"]
            self._recent[place, 1] = values["accuracy_rows"]
            self._recent_steps += 1
        self.tokens += tokens

    def add_norm(self, norm: Tensor) -> None:
        """Adds the gradient norm of an optimizer step."""
        self._sums[self._names.index("grad_norm")] += norm.detach()
        self._counts["grad_norm"] += 1

    def recent_accuracy(self, reduce: Callable[[Tensor], Tensor]) -> tuple[float | None, bool]:
        """The share of right answers in the window, and whether the window is full."""
        if not self._recent_steps:
            return None, False
        right, rows = reduce(self._recent.sum(dim=0)).tolist()
        return right / max(rows, 1), self._recent_steps >= len(self._recent)

    def report(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Averages since the last report, which are then forgotten.

        Args:
            reduce: sums a tensor over all processes.
        """
        counts = torch.tensor([float(self._counts[n]) for n in PARTS], device=self.device)
        both = reduce(torch.cat([self._sums, counts])).tolist()
        sums = dict(zip(self._names, both, strict=False))
        count_of = dict(zip(PARTS, both[len(self._names) :], strict=True))
        report = {n: sums[n] / count_of[n] for n in PARTS if count_of[n]}
        for name in SHARES:
            if rows := sums[f"{name}_rows"]:
                report[name] = sums[f"{name}_right"] / rows
        self._sums.zero_()
        self._counts = dict.fromkeys(PARTS, 0)
        return report

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Everything, summed over all processes, as JSON can hold it."""
        counts = torch.tensor([float(n) for n in self._counts.values()], device=self.device)
        tokens = torch.tensor([self.tokens], device=self.device)
        return {
            "sums": reduce(self._sums.clone()).tolist(),
            "counts": dict(zip(self._counts, reduce(counts).tolist(), strict=True)),
            "recent": reduce(self._recent.clone()).tolist(),
            "recent_steps": self._recent_steps,
            "tokens": int(reduce(tokens)),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any], *, is_first: bool) -> None:
        """Continues where `state_dict` was taken; another window starts empty.

        Args:
            is_first: of the processes: it takes the sums, the others begin with nothing.
        """
        self.seconds = state["seconds"]
        recent = torch.tensor(state["recent"])
        if recent.shape == self._recent.shape:
            self._recent_steps = state["recent_steps"]
        if not is_first:
            return
        self._sums.copy_(torch.tensor(state["sums"]))
        self._counts.update(state["counts"])
        if recent.shape == self._recent.shape:
            self._recent.copy_(recent)
        self.tokens = state["tokens"]


def row_share(right: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Rows that are right, and rows; None where nothing was asked."""
    if right is None:
        return None
    return right.sum(), torch.full((), float(len(right)), device=right.device)


def best_on_target(out: ReMambaOutput, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose best-scored kept position is a target (of any span), and rows that have one."""
    assert out.kept is not None
    index, scores, lengths = out.kept.index, out.kept.scores, out.kept.lengths
    pad = torch.arange(index.shape[1], device=index.device) >= lengths[:, None]
    best = scores.masked_fill(pad, -torch.inf).argmax(dim=1, keepdim=True)
    targets = any_span(targets)
    found = targets.gather(1, index.gather(1, best))[:, 0]
    return found.sum(), targets.any(dim=1).sum()


def any_span(targets: Tensor) -> Tensor:
    """(rows, l) bool: `score_targets` of all spans together."""
    return targets.any(dim=2) if targets.dim() == 3 else targets
