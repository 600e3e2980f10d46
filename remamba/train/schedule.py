"""What changes from step to step: the drawn p and rho, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from remamba.configuration_remamba import CompressionConfig
from remamba.errors import InputError
from remamba.train.config import TrainArgs


@dataclass(frozen=True)
class CompressionSchedule:
    """The compression of each step, drawn from the seed and the step alone."""

    settings: CompressionConfig
    """What does not change."""
    length: tuple[float, float]
    """Range of p."""
    keep_ratio: tuple[float, float]
    """Range of rho."""
    anneal: bool
    steps: int
    seed: int
    eval_length: float | None = None
    eval_keep_ratio: float | None = None

    @classmethod
    def from_args(cls, args: TrainArgs, base: CompressionConfig, steps: int) -> CompressionSchedule:
        """Where `args` says nothing, the base model's own settings hold.

        A base that was trained as a plain Mamba selects nothing; it starts with top-K here.

        Raises:
            InputError: start and length do not fit together.
        """
        names = ("start", "placement", "adaption", "selector", "score_gradient")
        changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
        if base.selector == "none" and args.selector is None:
            changes["selector"] = "topk"
        length = args.length or (base.length, base.length)
        keep_ratio = args.keep_ratio or (base.keep_ratio, base.keep_ratio)
        if args.keep_ratio is not None or args.eval_keep_ratio is not None:
            changes["num_kept"] = None
        start = changes.get("start", base.start)
        longest = max(length[1], args.eval_length or 0.0)
        if start + longest > 1 + 1e-9:
            raise InputError(
                f"--start {start} and --length up to {longest} reach past the end of the document; "
                "their sum must be at most 1"
            )
        return cls(
            settings=base.replace(**changes, length=length[1]),
            length=length,
            keep_ratio=keep_ratio,
            anneal=args.keep_ratio_schedule == "anneal",
            steps=steps,
            seed=args.seed,
            eval_length=args.eval_length,
            eval_keep_ratio=args.eval_keep_ratio,
        )

    def at(self, step: int) -> CompressionConfig:
        """The settings of a step, counted from 0."""
        generator = np.random.default_rng([self.seed, 2, step])
        length = generator.uniform(*self.length)
        low, high = self.keep_ratio
        if self.anneal:
            done = min(step / max(self.steps - 1, 1), 1.0)
            keep_ratio = min(high * (low / high) ** done * generator.uniform(0.8, 1.2), 1.0)
        else:
            keep_ratio = generator.uniform(low, high)
        return self.settings.replace(length=float(length), keep_ratio=float(keep_ratio))

    def for_evaluation(self) -> CompressionConfig:
        """The settings that the trained model is saved with."""
        low, high = self.keep_ratio
        keep_ratio = low if self.anneal else (low + high) / 2
        return self.settings.replace(
            length=self.eval_length or sum(self.length) / 2,
            keep_ratio=self.eval_keep_ratio or keep_ratio,
        )

    @property
    def is_shared(self) -> bool:
        """True when no step needs the document in stage 2, so that questions can share stage 1."""
        return self.settings.replace(length=self.length[0]).covers_document

    @property
    def covers_all_tokens(self) -> bool:
        """True when the whole document is the span in every step."""
        return self.settings.start == 0 and self.length[0] == 1.0


def learning_rate_factor(args: TrainArgs, steps: int) -> Callable[[int], float]:
    """The learning rate of a step as a share of its peak."""
    low = args.min_learning_rate_share

    def factor(step: int) -> float:
        if step < args.warmup_steps:
            return (step + 1) / args.warmup_steps
        done = (step - args.warmup_steps) / max(steps - args.warmup_steps, 1)
        done = min(done, 1.0)
        if args.lr_scheduler == "cosine":
            return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
        if args.lr_scheduler == "linear":
            return low + (1 - low) * (1 - done)
        return 1.0

    return factor
