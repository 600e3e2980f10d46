"""Files and directories that are written whole or not at all, and where that cannot be done.

All that the package writes goes through this file: a full disk, a name that is too long or a place
that cannot be written is one `InputError` everywhere.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from remamba.errors import InputError

PART = ".part"
"""How the name of a file or directory ends that is being written; a kill may leave it behind."""
REASONS = {
    errno.ENOSPC: "the disk is full; free some space, or choose another place",
    errno.EDQUOT: "your quota on this disk is used up; free some space, or choose another place",
    errno.EFBIG: "the file would be larger than is allowed here; choose another place",
    errno.EROFS: "this file system is read-only; choose another place",
    errno.EIO: "the disk reports an error; choose another disk",
    errno.EACCES: "permission denied; change the permissions, or choose another place",
    errno.EPERM: "permission denied; change the permissions, or choose another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle; remove them, or give another name",
    errno.ENOENT: "nothing can be made in this folder; choose another place",
    errno.ENOTDIR: "a part of its path is no folder; choose another place",
    errno.EEXIST: "a file has the name that a folder needs; choose another place",
    errno.ENOTEMPTY: "something was written there meanwhile; choose another place",
}
"""Why something cannot be written, and the mend, by the number of the operating system's error."""
TORN = "not all of it could be written; see whether the disk is full"
TORCH = ("inline_container", "PytorchStreamWriter", "iostream error")
"""Words of torch.save's errors of writing, which tell no reason."""
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What a file system says that cannot be told to write out what it holds in memory."""


def write_whole(path: str | Path, content: str | bytes, name: str | None = None) -> None:
    """Writes a file (a text as UTF-8) that is never there in part; see `whole_file`."""
    with whole_file(path, name) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: str | Path, name: str | None = None) -> Iterator[Path]:
    """An empty file beside `path` to write to, which takes its place when the block ends well.

    What was at `path` stays until then, and stays if the block fails: the other file is then
    removed. A symbolic link is followed, and the file behind it replaced. The permissions are
    those of a new file; the content is on the disk when the file takes its place.

    Args:
        name: what messages call `path`, such as "--output FILE".

    Raises:
        InputError: see `check_output`; or the disk is full, or fails.
    """
    name = name or str(path)
    with writing(name):
        target = _target(Path(path), name)
        part, mode = _new_part(target)
        try:
            yield part
            _finish(part, mode)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        _sync_folder(target.parent)


@contextmanager
def new_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory beside `path` to write to, which takes its place when the block ends well.

    If the block fails it is removed, and what was at `path` stays.

    Args:
        overwrite: replace a directory that is there and not empty.

    Raises:
        InputError: see `check_directory`; or the disk is full, or fails.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        part, old = _part_name(target), _part_name(target)
        part.mkdir()
        try:
            yield part
            mode = part.stat().st_mode & 0o666
            for file in (file for file in part.rglob("*") if file.is_file()):
                _finish(file, mode)
            if overwrite and target.exists():
                os.replace(target, old)
            os.replace(part, target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if old.exists() and not target.exists():
                os.replace(old, target)
        _sync_folder(target.parent)


def make_directory(path: str | Path, name: str | None = None) -> None:
    """Makes a directory and those above it, where they are missing.

    Raises:
        InputError: it cannot be made.
    """
    with writing(name or path):
        Path(path).mkdir(parents=True, exist_ok=True)


def check_output(path: str | Path, name: str | None = None) -> None:
    """Raise InputError unless a file can be written at `path`: before long work, not after it.

    Refused are what is no regular file (a device, a named pipe, a directory), links that lead in a
    circle, a missing folder, a name that is too long, and a place where nothing can be written.
    For that a file is made beside it, and removed.
    """
    name = name or str(path)
    with writing(name):
        part, _ = _new_part(_target(Path(path), name))
        part.unlink()


def check_directory(path: str | Path, name: str | None = None) -> None:
    """Raise InputError unless the directory `path` is there or can be made, and can be written."""
    name = name or str(path)
    with writing(name):
        place = Path(path)
        while (found := _stat(place)) is None:
            if place.is_symlink():
                raise InputError(f"{name}: {place} is a symbolic link to nothing; remove it")
            place = place.parent
        if not stat.S_ISDIR(found.st_mode):
            raise InputError(f"{name} is a file; choose a directory")
        part, _ = _new_part(place / "new")
        part.unlink()


def holds_nothing(folder: Path) -> bool:
    """Whether a directory has nothing in it but what a killed write left behind."""
    return all(path.suffix == PART for path in folder.iterdir())


@contextmanager
def writing(name: str | Path) -> Iterator[None]:
    """Errors of writing inside the block become an InputError of one line that begins with `name`.

    For what grows line by line, and for libraries that write several files of their own; all else
    is better written by `whole_file`. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise InputError(f"{name} cannot be written: {reason}") from error


def _reason(error: Exception) -> str | None:
    """Why something could not be written; None for an error of another kind."""
    if isinstance(error, OSError):
        return REASONS.get(error.errno or 0)
    # libraries written in Rust and C++ tell it in words alone
    if type(error).__name__ in ("SafetensorError", "Exception"):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return REASONS.get(int(found[1])) if found else None
    is_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in TORCH)
    return TORN if is_torch else None


def _target(path: Path, name: str) -> Path:
    """Where a file for `path` belongs: there, or where its symbolic links lead."""
    target = Path(os.path.realpath(path))
    found = _stat(path)
    if found is None:
        folder = target.parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise InputError(
                f"cannot write {name}: there is no folder {folder}; make it first, or give another "
                "name"
            )
    elif stat.S_ISDIR(found.st_mode):
        raise InputError(f"{name} is a directory; name a file in it")
    elif not stat.S_ISREG(found.st_mode):
        kind = next((kind for test, kind in KINDS if test(found.st_mode)), "no file")
        raise InputError(f"{name} is {kind}, and only files are replaced; give another name")
    elif not (target.exists() and os.path.samestat(found, target.stat())):
        raise InputError(f"{name} leads to a file without a name; give another name")
    return target


def _stat(path: Path) -> os.stat_result | None:
    """What is at `path`, behind its symbolic links; None when nothing is."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _part_name(target: Path) -> Path:
    """A name beside `target` that nobody else takes, and no longer than any name may be."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{PART}")


def _new_part(target: Path) -> tuple[Path, int]:
    """A new, empty file beside `target`, and the permissions that any new file gets there."""
    part = _part_name(target)
    file = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return part, stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)


def _finish(file: Path, mode: int) -> None:
    """Gives a file its permissions, and sees to it that its content is on the disk."""
    # safetensors writes 0600, whatever the user's own setting
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)
    _sync(file)


def _sync(path: Path, flags: int = os.O_RDWR) -> None:
    file = os.open(path, flags)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(file)


def _sync_folder(folder: Path) -> None:
    """So that a new name outlives a crash of the machine; not all systems can open folders."""
    with suppress(PermissionError):
        _sync(folder, os.O_RDONLY)
