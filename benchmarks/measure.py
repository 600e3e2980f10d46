"""What the benchmarks share: interleaved timing with its spread, the machine, keeping results.

A time is told as the median of its repeats with the smallest and the largest. Contenders are timed
in turns, never one after the other, so that a busy moment of the machine falls on all of them; a
ratio is taken within each turn, and its median and extremes are told too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import remamba
from remamba.errors import InputError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "triton", "mamba-ssm", "causal-conv1d", "mambapy", "numpy")
# variables that change speed
ENVIRONMENT = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "CUDA_VISIBLE", "REMAMBA_", "PYTORCH_")


@dataclass
class Times:
    """What one contender took, a value a turn."""

    wall: list[float] = field(default_factory=list)
    """Seconds."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of all threads together; well below threads * wall, others had the cores."""

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def as_dict(self) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "min_s": min(self.wall),
            "max_s": max(self.wall),
            "cores_used": round(statistics.median(map(_ratio, self.cpu, self.wall)), 2),
            "samples_s": self.wall,
        }


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(a: Times, b: Times) -> dict[str, float]:
    """a's time over b's, turn by turn."""
    return spread([x / y for x, y in zip(a.wall, b.wall, strict=True)])


def take_turns(
    contenders: dict[str, Callable[[], object]],
    repeats: int,
    device: str,
    title: str = "",
    warmup: int = 1,
) -> dict[str, Times]:
    """Times of each contender; turn i starts with another one than turn i - 1."""
    times = {name: Times() for name in contenders}
    names = list(contenders)
    for turn in range(-warmup, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            told = f"turn {turn + 1}/{repeats}" if turn >= 0 else "warm-up"
            progress(f"{title}: {told}, {name}")
            wall, cpu = clock(contenders[name], device)
            if turn >= 0:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def clock(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one call, the device's work included."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def progress(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def prepare_device(device: str, threads: int) -> None:
    """Set the threads; raise InputError for a device that is not here."""
    torch.set_num_threads(threads)
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is unknown here; give cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch sees no GPU; give --device cpu")


def free_bytes(device: str) -> float:
    """Memory that can still be taken on the device; infinite where it cannot be asked."""
    if device.startswith("cuda"):
        # what torch holds in reserve counts as free
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, memory and GPU."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
        flags = next(s for s in lines if s.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = []
    found = {
        "cpu": name,
        "cores": os.cpu_count(),
        "vector": next((v for v in ("avx512f", "avx2") if v in flags), None),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(_total_memory() / 2**30, 1),
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "environment": {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT)},
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def versions() -> dict[str, str | None]:
    """Python and the packages that speed depends on; None where one is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "remamba": remamba.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str:
    """The checkout's commit, "-dirty" when files differ from it, "unknown" without one."""
    try:
        here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        name = subprocess.run(["git", "rev-parse", "HEAD"], **here).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], **here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def begin(script: str, argv: Sequence[str], device: str) -> dict[str, Any]:
    """The head of a report: all that is needed to run it again."""
    return {
        "benchmark": Path(script).stem,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *argv]),
        "commit": commit(),
        "hardware": machine(device),
        "versions": versions(),
    }


def show_table(columns: Sequence[str], labels: int, rows: Iterable[Sequence[str]]) -> None:
    """A table on stderr whose first `labels` columns are words and the others figures."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < labels else "right", no_wrap=True)
    previous = None
    for row in rows:
        # a line between runs: all labels but the last, which is the contender
        if previous not in (None, row[: labels - 1]):
            table.add_section()
        table.add_row(*row)
        previous = row[: labels - 1]
    console.print(table)


def positive(text: str) -> int:
    """An argument of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def head_lines(report: dict[str, Any]) -> list[str]:
    """The head of a report as Markdown."""
    hardware, had = report["hardware"], report["versions"]
    used = ", ".join(f"{name} {had[name]}" for name in ("python", *PACKAGES) if had.get(name))
    place = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores"
    variables = ", ".join(f"{k}={v}" for k, v in hardware["environment"].items())
    return [
        f"# {report['benchmark']}, {report['date']}",
        "",
        f"    {report['command']}",
        "",
        f"{place}, {hardware['torch_threads']} threads, load average "
        f"{hardware['load_average'][0]} at the start"
        f"{', ' if variables else ''}{variables}. {used}. Commit {report['commit']}.",
        "",
    ]


def result_paths(name: str | None, output: Path | None) -> list[Path]:
    """Where a report is to be kept. Raises InputError when something is there already."""
    paths = [] if output is None else [output]
    if name is not None:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"--save {name!r} must be letters, digits, - and _ only")
        stem = f"{name}_{datetime.date.today().isoformat()}"
        paths += [RESULTS / f"{stem}.json", RESULTS / f"{stem}.md"]
    for path in paths:
        if path.exists():
            raise InputError(f"{path} is there already, and results are not overwritten")
        if not path.parent.is_dir() and path.parent != RESULTS:
            raise InputError(f"{path.parent} is no directory; make it first")
    return paths


def keep(report: dict[str, Any], text: str, paths: Sequence[Path]) -> None:
    """Write the report: as text where the name ends in .md, as JSON elsewhere."""
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        written = path.with_name(path.name + ".part")
        written.write_text(text if path.suffix == ".md" else json.dumps(report, indent=1) + "\n")
        written.rename(path)
        progress(f"kept: {path}")
