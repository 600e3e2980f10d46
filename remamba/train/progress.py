"""Lines on stderr, the only place where training speaks while it runs; and which process speaks."""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import torch


def is_main_process() -> bool:
    """True in a run of one process, and in the first of many."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_processes() -> None:
    """Ends the group of a run of many processes, whose threads must not outlive the interpreter.

    For the end of a program: this process can train no second time with the others.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def say(text: str) -> None:
    """Writes a line to stderr, from the main process only."""
    if is_main_process():
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    clock = f"{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
    return f"{hours}:{clock}" if hours else clock


def amount(count: float) -> str:
    """12, 3.4k, 56M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
    return f"{count:.0f}"


def peak_memory(device: torch.device) -> float:
    """The most memory so far, GiB: of this GPU, or of this process where it trains on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    # bytes on macOS, KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def describe(report: dict[str, Any], steps: int, seconds_left: float) -> str:
    """A report as one line."""
    words = [f"step {report['step']}/{steps}", f"loss {report.get('loss', float('nan')):.4f}"]
    for name, short in (
        ("answer_loss", "answer"),
        ("stage1_loss", "stage1"),
        ("score_loss", "score"),
        ("document_loss", "document"),
    ):
        if name in report:
            words.append(f"{short} {report[name]:.3f}")
    for name, short in (("accuracy", "right"), ("stage1_accuracy", "stage1"), ("found", "found")):
        if name in report:
            words.append(f"{short} {100 * report[name]:.1f}%")
    if "keep_ratio" in report:
        words.append(f"rho {report['keep_ratio']:.3g} K {report.get('num_kept', 0)}")
    words.append(f"lr {report['learning_rate']:.2e}")
    if "grad_norm" in report:
        words.append(f"norm {report['grad_norm']:.2f}")
    words.append(f"{amount(report['tokens_per_second'])} tok/s")
    words.append(f"{report['memory_gib']:.1f} GiB")
    return "  ".join([*words, f"{duration(seconds_left)} left"])
