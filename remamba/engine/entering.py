"""How requests enter the engine: which are prefilled together, by which chance, and how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from remamba.engine.request import Job, Scored
from remamba.modeling_base import ReMambaOutput
from remamba.modeling_remamba import ReMambaForCausalLM

PREFILL_TOKENS = 8192
"""Most positions, padding included, in a prefill that several requests share."""


def fits(job: Job, group: list[Job]) -> bool:
    """True when a job can be prefilled with the group: read alike, and of similar length."""
    first = group[0]
    if job.memory is not first.memory or bool(job.context) != bool(first.context):
        return False
    if job.method != first.method:
        return False
    lengths = [len(j.ids) + (len(j.context) if j.memory is None else 0) for j in (*group, job)]
    longest = max(lengths)
    is_similar = longest <= 64 or 2 * min(lengths) >= longest
    return is_similar and longest * len(lengths) <= PREFILL_TOKENS


def same_document(first: Job, second: Job) -> bool:
    alike = first.method == second.method and second.memory is None
    return alike and (first.context is second.context or first.context == second.context)


@contextmanager
def seeded(job: Job, device: torch.device) -> Iterator[None]:
    """Seed torch with the request's seed for a while, if its method draws random numbers."""
    if not job.method.draws:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(job.request.options.seed)
        yield


def span_scores(out: ReMambaOutput) -> list[Scored]:
    """The scores of each row's span."""
    assert out.scores is not None and out.span is not None
    scores = out.scores.float().cpu()
    start, length = out.span.start.tolist(), out.span.length.tolist()
    each = len(scores) // len(start)  # rows of a memory's document
    return [Scored(start[i // each], row[: length[i // each]]) for i, row in enumerate(scores)]


class StageClock:
    """Measures a prefill. Stage 1 ends when the compressor is first asked for keys.

    On a GPU events measure it: waiting between the stages would slow the prefill down.
    """

    def __init__(self, model: ReMambaForCausalLM):
        self._device = model.device
        self._is_gpu = model.device.type == "cuda"
        self._keys = model.compressor.key_proj
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._hook = self._keys.register_forward_pre_hook(self._mark)
        self._mark()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._stop = time.perf_counter()
        self._hook.remove()

    def _mark(self, *_: object) -> None:
        if self._is_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record(torch.cuda.current_stream(self._device))
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, reading: float) -> dict[str, float]:
        """Seconds of the prefill, and of its two stages if it had two.

        Call it after the prefill's results have been read.

        Args:
            reading: seconds spent on reading the document before.
        """
        whole = self._stop - self._start
        found = {"prefill": reading + whole}
        if len(self._marks) > 1:
            first, last = self._marks[0], self._marks[-1]
            stage1 = first.elapsed_time(last) / 1000 if self._is_gpu else last - first
            found["stage1"] = reading + min(stage1, whole)
            found["stage2"] = whole - min(stage1, whole)
        return found
