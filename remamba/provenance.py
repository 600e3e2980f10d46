"""Where a result comes from: versions, the commit of this package's own checkout, the device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = ("remamba", "torch", "triton", "transformers", "tokenizers", "accelerate", "numpy")
"""What results depend on."""
GIT_SECONDS = 30


def package_version(name: str) -> str | None:
    """The version of an installed package; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(*more: str) -> dict[str, str | None]:
    """Versions of Python, of this package and of what its results depend on, where installed.

    Args:
        more: other packages; None stands for one that is not installed.
    """
    found = {name: package_version(name) for name in PACKAGES}
    known = {name: version for name, version in found.items() if version is not None}
    named = {name: package_version(name) for name in more}
    return {"python": platform.python_version(), **known, **named}


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" where files differ from it.

    None when there is no such checkout: git's top level must be the folder that holds the package,
    and the package must be among its tracked files. One that is installed or copied below somebody
    else's repository has no commit. None, too, where git is missing or refuses (a checkout of
    another user). Files that git does not track make no difference.
    """
    here = Path(__file__).resolve()
    root = here.parent.parent
    try:
        if not os.path.samefile(_git(root, "rev-parse", "--show-toplevel"), root):
            return None
        _git(root, "ls-files", "--error-unmatch", "--", str(here.relative_to(root)))
        name = _git(root, "rev-parse", "--verify", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{name}-dirty" if changed else name


def _git(folder: Path, *words: str) -> str:
    """What git says of the repository that `folder` lies in, whatever the environment names."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or "CONFIG" in k}
    done = subprocess.run(
        ["git", "--no-optional-locks", *words],
        cwd=folder,
        env=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_SECONDS,
        check=True,
    )
    return os.fsdecode(done.stdout).removesuffix("\n")


def device_name(device: torch.device) -> str:
    """A GPU's own name; "cpu", or another device's type."""
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)
