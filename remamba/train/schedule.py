"""What changes from step to step and from row to row: p, rho, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remamba.compression_config import DEFAULT_KEEP_RATIO, CompressionConfig, RowCompression
from remamba.errors import InputError
from remamba.train.config import TrainArgs


@dataclass(frozen=True)
class CompressionSchedule:
    """The compression of each row of a step, drawn from the seed, the step and the row's number.

    Nothing else enters, so that a resumed run, or one on other processes, draws the same.
    """

    settings: CompressionConfig
    """What does not change."""
    length: tuple[float, float]
    """Range of p."""
    keep_ratio: tuple[float, float]
    """Range of rho."""
    kind: str
    """How rho goes from step to step: uniform or anneal."""
    steps: int
    seed: int
    eval_length: float | None = None
    eval_keep_ratio: float | None = None
    short_prompt: tuple[int, float] | None = None
    """Rows of up to so many tokens have this p."""
    keep_last: int = 0
    """Tokens at the end of a longer row that no span reaches into."""

    @classmethod
    def from_args(cls, args: TrainArgs, base: CompressionConfig, steps: int) -> CompressionSchedule:
        """Where `args` says nothing, the base model's own settings hold.

        Raises:
            InputError: start and length do not fit together.
        """
        changes = args.settings
        length = args.length or (base.length, base.length)
        share = args.eval_keep_ratio or base.keep_ratio or DEFAULT_KEEP_RATIO
        keep_ratio = args.keep_ratio or (share, share)
        if args.keep_ratio is not None or args.eval_keep_ratio is not None:
            changes["keep_ratio"] = keep_ratio[1]
        start = changes.get("start", base.start)
        short = args.short_prompt[1] if args.short_prompt else 0.0
        longest = max(length[1], args.eval_length or 0.0, short)
        if start + longest > 1 + 1e-9:
            raise InputError(
                f"--start {start} and --length up to {longest} reach past the end of the document; "
                "their sum must be at most 1"
            )
        return cls(
            settings=base.replace(**changes, length=length[1]),
            length=length,
            keep_ratio=keep_ratio,
            kind=args.keep_ratio_schedule,
            steps=steps,
            seed=args.seed,
            eval_length=args.eval_length,
            eval_keep_ratio=args.eval_keep_ratio,
            short_prompt=args.short_prompt,
            keep_last=args.keep_last,
        )

    def at(
        self,
        step: int,
        rows: NDArray | None = None,
        lengths: NDArray | None = None,
    ) -> CompressionConfig:
        """The settings of some rows of a step.

        Args:
            step: counted from 0.
            rows: (b,) numbers of the rows in the step's whole batch, whatever process reads them;
                None: of the first alone, as settings for all.
            lengths: (b,) their tokens: of the prompt, or of the document where it stands apart.
        """
        numbers = np.zeros(1, dtype=np.int64) if rows is None else rows
        drawn = np.random.default_rng([self.seed, 2, step]).random((int(numbers.max()) + 1, 2))
        share, other = drawn[numbers].T
        low, high = self.length
        length = low + (high - low) * share
        low, high = self.keep_ratio
        if self.kind == "anneal":
            done = min(step / max(self.steps - 1, 1), 1.0)
            keep_ratio = np.minimum(high * (low / high) ** done * (0.8 + 0.4 * other), 1.0)
        else:
            keep_ratio = low + (high - low) * other
        if lengths is not None:
            length = self._by_length(length, lengths)
        settings = self._with(_mean(length), _mean(keep_ratio))
        if rows is None or (np.ptp(length) == 0 and np.ptp(keep_ratio) == 0):
            return settings
        return RowCompression(
            **settings.to_dict(),
            drawn_lengths=tuple(length.tolist()),
            drawn_keep_ratios=() if settings.keep_ratio is None else tuple(keep_ratio.tolist()),
        )

    def _by_length(self, length: NDArray, tokens: NDArray) -> NDArray:
        """p as the rows' own lengths change it."""
        tokens = np.maximum(tokens, 1)
        if self.keep_last:
            length = np.minimum(length, np.maximum(tokens - self.keep_last, 1) / tokens)
        if self.short_prompt is not None:
            most, share = self.short_prompt
            length = np.where(tokens <= most, share, length)
        return length

    def for_evaluation(self) -> CompressionConfig:
        """The settings that the trained model is saved with."""
        low, high = self.keep_ratio
        keep_ratio = (low + high) / 2 if self.kind == "uniform" else low
        return self._with(
            self.eval_length or sum(self.length) / 2, self.eval_keep_ratio or keep_ratio
        )

    def _with(self, length: float, keep_ratio: float) -> CompressionConfig:
        """The settings at p and rho; where a number of tokens is kept, rho stays as it is."""
        if self.settings.num_kept is not None:
            return self.settings.replace(length=length)
        return self.settings.replace(length=length, keep_ratio=keep_ratio)

    @property
    def is_shared(self) -> bool:
        """True when no step needs the document in stage 2, so that questions can share stage 1."""
        if self._follows_length and self.settings.placement != "before_question":
            return False
        return self.settings.replace(length=self.length[0]).covers_document

    @property
    def covers_all_tokens(self) -> bool:
        """True when the whole document is the span in every step."""
        return self.settings.start == 0 and self.length[0] == 1.0 and not self._follows_length

    @property
    def _follows_length(self) -> bool:
        """True when p is not as drawn in every row."""
        return self.short_prompt is not None or self.keep_last > 0


def _mean(values: NDArray) -> float:
    """The mean; of equal values that value itself, to the last bit."""
    return float(values[0] if np.ptp(values) == 0 else values.mean())


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
