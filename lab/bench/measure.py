"""Timing: contenders in turns, on the host's clock or the GPU's, each with its spread.

A time is told as the median of its turns with the smallest and the largest. Contenders are timed
in turns, never one after the other, so that a busy moment of the machine falls on all of them; a
ratio is taken within each turn, and its median and extremes are told too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lab.bench.settings import Machine
from remamba.errors import InputError

FLUSHED_BYTES = 2**28
"""Written before a call timed on the GPU: more than its caches hold."""
SPACER_CYCLES = 1_000_000
"""What the GPU waits before such a call, so that the host is ahead of it."""


class Sample(NamedTuple):
    """What one call took, in seconds."""

    wall: float
    """The time that is compared; of decoding, that behind the first token."""
    cpu: float | None = None
    """Of all threads together; well below threads * wall, others had the cores."""
    host: float | None = None
    """Until the call returned, where wall is the GPU's time."""
    first: float | None = None
    """Until the first token was there."""


Clock = Callable[[Callable[[], Any], str], Sample]


@dataclass
class Times:
    """What one contender took, a sample a turn."""

    samples: list[Sample] = field(default_factory=list)
    peak_bytes: int | None = None
    """Most memory held on the GPU in a call, weights included."""

    @property
    def wall(self) -> list[float]:
        return [sample.wall for sample in self.samples]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def as_dict(self, divisor: int = 1) -> dict[str, Any]:
        """The figures of a row; of one in `divisor` equal steps of a call."""
        found: dict[str, Any] = {
            "median_s": self.median / divisor,
            "min_s": min(self.wall) / divisor,
            "max_s": max(self.wall) / divisor,
        }
        cores = [s.cpu / s.wall for s in self.samples if s.cpu is not None and s.wall]
        if cores:
            found["cores_used"] = round(statistics.median(cores), 2)
        for name in ("host", "first"):
            values = [getattr(sample, name) for sample in self.samples]
            if values and None not in values:
                found[f"{name}_s"] = statistics.median(values) / divisor
        if self.peak_bytes is not None:
            found["peak_gib"] = self.peak_bytes / 2**30
        return {**found, "samples_s": [value / divisor for value in self.wall]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(a: Times, b: Times) -> dict[str, float]:
    """a's time over b's, turn by turn, in the turns that both had."""
    return spread([x / y for x, y in zip(a.wall, b.wall, strict=False)])


def wall_clock(run: Callable[[], object], device: str) -> Sample:
    """The host's clock around one call, the device's work included."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize(device)
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def own_clock(run: Callable[[], Sample], device: str) -> Sample:
    """For a contender that times itself and returns the sample."""
    synchronize(device)
    return run()


class DeviceClock:
    """The GPU's own time of one call, between two events, caches cold and the host ahead."""

    def __init__(self, device: str):
        self._filler = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object], device: str) -> Sample:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._filler.zero_()
        torch.cuda._sleep(SPACER_CYCLES)
        begin.record()
        start = time.perf_counter()
        run()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return Sample(begin.elapsed_time(end) / 1e3, host=host)


def device_clock(device: str) -> Clock:
    """The clock for single ops: the GPU's, or the host's on a CPU."""
    return DeviceClock(device) if is_cuda(device) else wall_clock


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str,
    title: str = "",
    *,
    clock: Clock = wall_clock,
    warm_up: int | None = None,
    budget: float | None = None,
) -> dict[str, Times]:
    """Times of each contender; turn i starts with another one than turn i - 1.

    Args:
        warm_up: calls before the first turn; default: 1 on a CPU, 3 on a GPU (kernels are compiled
            and graphs captured then).
        budget: a contender whose turns would take longer than so many seconds gets fewer, one at
            least, and no third warm-up; None: all get the same.
    """
    times = {name: Times() for name in contenders}
    turns = dict.fromkeys(contenders, repeats)
    if warm_up is None:
        warm_up = 3 if is_cuda(device) else 1
    for name, run in contenders.items():
        if warm_up:
            progress(f"{title}: warm-up, {name}")
        # the first call may compile kernels: what a turn takes is told by the others
        taken: list[float] = []
        while len(taken) < warm_up and not (
            budget is not None and len(taken) > 1 and sum(taken) > budget / 2
        ):
            start = time.perf_counter()
            clock(run, device)
            taken.append(time.perf_counter() - start)
        if budget is not None and taken and min(taken) * repeats > budget:
            turns[name] = max(1, int(budget / min(taken)))
    names = list(contenders)
    for turn in range(repeats):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if turn < turns[name]:
                _take(times[name], contenders[name], device, clock)
    return times


def _take(times: Times, run: Callable[[], Any], device: str, clock: Clock) -> None:
    """One more sample, and the peak of the memory so far."""
    if not is_cuda(device):
        times.samples.append(clock(run, device))
        return
    torch.cuda.reset_peak_memory_stats(device)
    times.samples.append(clock(run, device))
    times.peak_bytes = max(times.peak_bytes or 0, torch.cuda.max_memory_allocated(device))


def synchronize(device: str) -> None:
    if is_cuda(device):
        torch.cuda.synchronize(device)


def is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def progress(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def prepare(args: Machine) -> tuple[str, str]:
    """(device, dtype) that are meant, threads and seed set.

    Raises:
        InputError: the device is not here.
    """
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is unknown here; give cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch sees no GPU; give --device cpu")
    if kind == "cuda":
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise InputError(
                f"--device {device}: torch sees {torch.cuda.device_count()} GPUs, counted from 0"
            )
        # events and kernels go to the current device
        torch.cuda.set_device(index)
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads {args.threads} must be at least 1")
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return device, args.dtype if args.dtype != "auto" else (
        "bfloat16" if kind == "cuda" else "float32"
    )


def check_counts(**counts: int | Sequence[int] | None) -> None:
    """Raise InputError for an option that is not at least 1; None is passed over."""
    for name, given in counts.items():
        values = given if isinstance(given, Sequence) else [given]
        for value in values:
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value} must be at least 1")


def free_bytes(device: str) -> float:
    """Memory that can still be taken on the device; infinite where it cannot be asked."""
    if is_cuda(device):
        # what torch holds in reserve counts as free
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
