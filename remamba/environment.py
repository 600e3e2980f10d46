"""What surrounds the package: versions, its commit, and how much transformers says."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path


def package_version(name: str) -> str | None:
    """The version of an installed package; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what its results depend on."""
    names = ("remamba", "torch", "triton", "transformers", "tokenizers", "accelerate", "numpy")
    found = {name: package_version(name) for name in names}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), **known}


def commit() -> str | None:
    """The commit of the checkout this package runs from; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice for programmers among a command's own lines."""
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
