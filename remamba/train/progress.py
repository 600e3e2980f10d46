"""Lines on stderr: the only place where training speaks while it runs."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """True in a run of one process, and in the first of many."""
    return int(os.environ.get("RANK", "0")) == 0


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
