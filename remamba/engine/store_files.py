"""The files of a store of memories: in a folder, or wherever fsspec can write."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from remamba.bare_model import BaseReMamba
from remamba.errors import InputError
from remamba.files import PART, check_directory, make_directory
from remamba.methods.memory import DocumentMemory

SUFFIX = ".memory"
STALE_SECONDS = 3600
"""A part of a file that is older is no longer being written: whoever wrote it was killed."""


class StoreFiles:
    """Memories in files that are named by their keys; several processes may share a place.

    Args:
        place: a folder, which is made where it is missing, or a URL (`memory://`, `s3://`, ...).
        most_bytes: of the files in a folder; those used longest ago are removed. None: no bound.

    Raises:
        InputError: it cannot be written to, or fsspec does not know it.
    """

    def __init__(self, place: str | Path, most_bytes: int | None = None):
        self.place = str(place)
        self._most_bytes = most_bytes
        self._remote: Any = None
        if "://" in self.place and not self.place.startswith("file://"):
            if most_bytes is not None:
                raise InputError(
                    f"file_bytes = {most_bytes} is for a folder; at {self.place} let the place "
                    "itself remove old files"
                )
            self._remote, self._root = remote_place(self.place)
            return
        folder = Path(self.place.removeprefix("file://"))
        make_directory(folder)
        check_directory(folder)
        self._root = str(folder)
        for path in folder.glob(f".*{PART}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def path(self, key: str) -> str:
        """Where a key's file stands."""
        return f"{self._root}/{key}{SUFFIX}"

    def has(self, key: str) -> bool:
        """Whether a key has a file."""
        path = self.path(key)
        return Path(path).is_file() if self._remote is None else self._remote.exists(path)

    def remove(self, key: str) -> None:
        """Remove a key's file, if there is one."""
        with suppress(FileNotFoundError):
            if self._remote is None:
                os.unlink(self.path(key))
            else:
                self._remote.rm_file(self.path(key))

    def save(self, key: str, memory: DocumentMemory) -> None:
        """Write a file that is never there in part.

        Raises:
            InputError: the place cannot be written to.
        """
        if self._remote is None:
            memory.save(self.path(key))
            self._remove_old()
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "memory")
            memory.save(local)
            part = f"{self._root}/.{key}{PART}"
            self._remote.makedirs(self._root, exist_ok=True)
            self._remote.put_file(str(local), part)
            self._remote.mv(part, self.path(key))

    def load(self, key: str, model: BaseReMamba) -> DocumentMemory | None:
        """The memory of a key, on the model's device; None where there is no file.

        Raises:
            InputError: it is damaged, another model's, or another key's.
        """
        path = self.path(key)
        if self._remote is None:
            if not Path(path).is_file():
                return None
            memory = _checked(key, path, model)
            with suppress(OSError):
                os.utime(path)
            return memory
        if not self._remote.exists(path):
            return None
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "memory")
            self._remote.get_file(path, str(local))
            return _checked(key, str(local), model)

    def _remove_old(self) -> None:
        """Bring a folder within its bytes; another process may be doing the same."""
        if self._most_bytes is None:
            return
        found = []
        for path in Path(self._root).glob(f"*{SUFFIX}"):
            with suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        excess = sum(size for _, size, _ in found) - self._most_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            excess -= size
            with suppress(OSError):
                path.unlink()


def _checked(key: str, path: str, model: BaseReMamba) -> DocumentMemory:
    memory = model.load_memory(path)
    if memory.key != key:
        raise InputError(f"{path} holds another document's memory; remove it")
    return memory


def remote_place(place: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    try:
        found, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"memories cannot be kept at {place} ({error}); give a folder, or a URL that fsspec "
            "knows"
        ) from error
    return found, root.rstrip("/")
