"""A benchmark's report: what it ran on, its tables, and where it is kept."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lab.bench.measure import is_cuda, progress
from remamba.errors import InputError
from remamba.files import check_output, make_directory, write_whole
from remamba.provenance import commit, device_name, versions

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "triton", "mamba-ssm", "causal-conv1d", "mambapy", "numpy")
# variables that change speed
ENVIRONMENT = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "CUDA_VISIBLE", "REMAMBA_", "PYTORCH_", "TRITON_",
)  # fmt: skip
SIGNIFICANT = 4
"""Digits in the printed report; the kept one has all."""


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, memory and GPU."""
    name = platform.processor() or platform.machine()
    flags: list[str] = []
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
        flags = next(s for s in lines if s.startswith("flags")).split()
    except (OSError, StopIteration):
        pass
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
    if is_cuda(device):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = device_name(torch.device(device))
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def command_line(name: str, args: Any) -> str:
    """The command that gives these settings: every option that is not the default."""
    words = ["remamba", "bench", name]
    for option in dataclasses.fields(args):
        value = getattr(args, option.name)
        if value == option.default:
            continue
        word = option.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{word}" if value else f"--no-{word}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{word}", *map(str, values)]
    return shlex.join(words)


def begin(name: str, args: Any, device: str, **settings: Any) -> dict[str, Any]:
    """The head of a report: all that is needed to run it again."""
    given = dataclasses.asdict(args)
    given.update(settings, device=device)
    return {
        "benchmark": f"bench {name}",
        "date": datetime.date.today().isoformat(),
        "command": command_line(name, args),
        "commit": commit() or "unknown",
        "hardware": machine(device),
        "versions": versions(*PACKAGES),
        "settings": {
            key: str(value) if isinstance(value, Path) else value for key, value in given.items()
        },
    }


def show_table(columns: Sequence[str], labels: int, rows: Iterable[Sequence[str]]) -> None:
    """A table on stderr whose first `labels` columns are words and the others figures.

    A label that is the row above's is not said again.
    """
    cells = [list(columns)]
    previous: Sequence[str] = ("",) * labels
    for row in rows:
        same = next((i for i in range(labels) if row[i] != previous[i]), labels)
        cells.append(["" if i < min(same, labels - 1) else cell for i, cell in enumerate(row)])
        previous = row
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            cell.ljust(width) if i < labels else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stderr.write("  ".join(padded).rstrip() + "\n")
    sys.stderr.flush()


def as_markdown(
    report: dict[str, Any],
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    sentences: Iterable[str] = (),
) -> str:
    """The report as a page: its head, the table, and what it says."""
    hardware, had = report["hardware"], report["versions"]
    used = ", ".join(f"{name} {had[name]}" for name in ("python", *PACKAGES) if had.get(name))
    place = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores"
    variables = ", ".join(f"{k}={v}" for k, v in hardware["environment"].items())
    lines = [
        f"# {report['benchmark']}, {report['date']}",
        "",
        f"    {report['command']}",
        "",
        f"{place}, {hardware['torch_threads']} threads, load average "
        f"{hardware['load_average'][0]} at the start"
        f"{', ' if variables else ''}{variables}. {used}. Commit {report['commit']}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    if said := [f"- {sentence}" for sentence in sentences]:
        lines += ["", *said]
    return "\n".join(lines) + "\n"


def result_paths(name: str | None, output: Path | None) -> list[Path]:
    """Where a report is to be kept. Raises InputError when something is there already."""
    paths = [] if output is None else [output]
    if name is not None:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"--save {name!r} must be letters, digits, - and _ only")
        if not RESULTS.parent.is_dir():
            raise InputError(f"--save {name} needs a checkout ({RESULTS} is not there); use "
                             "--output FILE.json")  # fmt: skip
        stem = f"{name}_{datetime.date.today().isoformat()}"
        paths += [RESULTS / f"{stem}.json", RESULTS / f"{stem}.md"]
    for path in paths:
        if path.parent != RESULTS:
            check_output(path)
        if path.exists():
            raise InputError(f"{path} is there already, and results are not overwritten")
    return paths


def keep(report: dict[str, Any], text: str, paths: Sequence[Path]) -> None:
    """Write the report: as text where the name ends in .md, as JSON elsewhere."""
    for path in paths:
        make_directory(path.parent)
        write_whole(path, text if path.suffix == ".md" else json.dumps(report, indent=1) + "\n")
        progress(f"kept: {path}")


def compact(report: Any) -> Any:
    """The report as it is printed: without the single samples, figures to four digits."""
    if isinstance(report, dict):
        return {key: compact(value) for key, value in report.items() if key != "samples_s"}
    if isinstance(report, list | tuple):
        return [compact(value) for value in report]
    if isinstance(report, float):
        return float(f"{report:.{SIGNIFICANT}g}")
    return report


def figure(value: float | None, digits: int = 3) -> str:
    """A figure of a table, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
