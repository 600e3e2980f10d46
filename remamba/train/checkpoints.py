"""Checkpoints that are whole or not there: written under another name, sealed, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from remamba.files import write_whole, writing
from remamba.train.progress import say

SEAL_FILE = "complete.json"
"""The size of every file of a checkpoint; written last."""
WRITING = ".writing"
"""Where a run's checkpoints are written, and where they go to be deleted."""


def seal(folder: Path, place: Path) -> None:
    """Moves a checkpoint that has been written to its place, its sizes noted."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_whole(folder / SEAL_FILE, json.dumps(sizes, indent=2) + "\n")
    with writing(place):
        if place.exists():  # a torn one, which was skipped
            shutil.rmtree(place)
        os.replace(folder, place)


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    try:
        sizes = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
    except FileNotFoundError:
        return f"{SEAL_FILE} is missing: it was never finished"
    except (ValueError, AttributeError):
        return f"{SEAL_FILE} cannot be read"
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint in a run's directory; torn ones are skipped with a warning."""
    for path in reversed(_checkpoints(folder)):
        wrong = flaw(path)
        if wrong is None:
            return path
        say(f"warning: {path} is torn ({wrong}); it is skipped")
    return None


def keep_last(folder: Path, count: int) -> None:
    """Deletes all checkpoints but the last ones; none is ever seen in part."""
    for path in _checkpoints(folder)[:-count]:
        leaving = folder / WRITING / f"old-{path.name}"
        with writing(path):
            os.replace(path, leaving)
            shutil.rmtree(leaving)


def step_of(checkpoint: Path) -> int:
    """Steps done by a checkpoint."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    found = folder.glob("checkpoint-*")
    return sorted((p for p in found if re.fullmatch(r"checkpoint-\d+", p.name)), key=step_of)
