"""Files are written whole or not at all, and where that cannot be done one line says so."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remamba
from remamba.errors import InputError
from remamba.evals.predictions import PredictionFile
from remamba.files import (
    check_directory,
    check_output,
    holds_nothing,
    make_directory,
    new_directory,
    whole_file,
    write_whole,
    writing,
)

PACKAGE = Path(remamba.__file__).parent
IS_ROOT = os.geteuid() == 0
NAME = "--output FILE"


@pytest.fixture
def short_files() -> Iterator[int]:
    """No file may grow beyond so many bytes: the system's own limit of this process."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, was[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, was)


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def refused(path: Path) -> str:
    """The message of both the check and the writing, which leave everything as it was."""
    before = os.lstat(path) if os.path.lexists(path) else None
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    said = refusal(lambda: check_output(path, NAME))
    assert refusal(lambda: write_whole(path, "new", NAME)) == said
    assert NAME in said
    after = os.lstat(path) if os.path.lexists(path) else None
    assert (before and (before.st_ino, before.st_mode)) == (after and (after.st_ino, after.st_mode))
    assert beside == (sorted(path.parent.iterdir()) if path.parent.is_dir() else [])
    return said


# a file


def test_a_text_and_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "Zoë\n")
    assert (tmp_path / "a").read_bytes() == b"Zo\xc3\xab\n"
    write_whole(tmp_path / "a", b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a") as part:
            save_file({"x": torch.zeros(2)}, part)
        with new_directory(tmp_path / "d") as folder:
            save_file({"x": torch.zeros(2)}, folder / "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for place, most in (("a", 0o666), ("d", 0o777), ("d/x", 0o666)):
        assert stat.S_IMODE((tmp_path / place).stat().st_mode) == most & ~umask


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.EMFILE, "")]
)
def test_a_block_that_fails_changes_nothing(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(error)), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def _write_until_killed(file: Path, ready: Path) -> None:
    with whole_file(file) as part, part.open("wb", buffering=0) as raw:
        while True:
            raw.write(b"new" * 1000)
            ready.touch()


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    file, ready = tmp_path / "out" / "a", tmp_path / "ready"
    file.parent.mkdir()
    file.write_text("old")
    process = multiprocessing.get_context("fork").Process(
        target=_write_until_killed, args=(file, ready)
    )
    process.start()
    until = time.monotonic() + 60
    while not ready.exists():
        assert process.is_alive() and time.monotonic() < until
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(os.listdir(file.parent)) == 2
    file.unlink()
    assert holds_nothing(file.parent)
    write_whole(file, "next")
    assert file.read_text() == "next"
    assert not holds_nothing(file.parent)


# places


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The file behind it is replaced, also in another folder; the link stays a link."""
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "file", tmp_path / "link"
    link.symlink_to("second")
    (tmp_path / "second").symlink_to("real/file")
    for content in ("new", "newer"):  # at first the links lead to nothing yet
        check_output(link)
        write_whole(link, content)
        assert file.read_text() == content
        assert not file.is_symlink()
        assert link.is_symlink()
        assert os.listdir(file.parent) == ["file"]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "itself").symlink_to("itself")
    assert "lead in a circle" in refused(tmp_path / "itself")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    assert "lead in a circle" in refused(tmp_path / "one")
    (tmp_path / "gone").symlink_to("nowhere/file")
    assert f"there is no folder {tmp_path / 'nowhere'}" in refused(tmp_path / "gone")
    (tmp_path / "proc").symlink_to("/proc/file")
    assert "choose another place" in refused(tmp_path / "proc")


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is a named pipe" in refused(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path has at most 107 bytes
        one.bind("socket")
        os.chdir(here)
        assert "is a socket" in refused(tmp_path / "socket")
    (tmp_path / "folder").mkdir()
    assert "is a directory" in refused(tmp_path / "folder")
    (tmp_path / "link").symlink_to("fifo")
    assert "is a named pipe" in refused(tmp_path / "link")


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a device")
def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("no device can be made here")
    assert "is a device" in refused(tmp_path / "device")


def test_names(tmp_path: Path) -> None:
    """As long as a name may be, and longer."""
    for name in ("a" * 255, "ä" * 127):
        check_output(tmp_path / name)
        write_whole(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    for name in ("b" * 300, "b" * 256, "ä" * 128):
        assert "the name is too long" in refused(tmp_path / name)
        assert "the name is too long" in refusal(partial(check_directory, tmp_path / name))
        assert "the name is too long" in refusal(partial(make_directory, tmp_path / name))


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert f"there is no folder {tmp_path / 'no'}" in refused(tmp_path / "no" / "a")
    assert "a part of its path is no folder" in refused(tmp_path / "file" / "a")
    assert "choose another place" in refused(Path("/proc/a"))


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_a_folder_of_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permission denied" in refused(tmp_path / "a")
    assert "permission denied" in refusal(lambda: check_directory(tmp_path / "d"))
    tmp_path.chmod(0o700)


def test_a_read_only_disk(small_disk: Path) -> None:
    (small_disk / "a").write_text("old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "read-only" in refused(small_disk / "a")
    assert "read-only" in refusal(lambda: check_directory(small_disk / "d", NAME))
    assert "read-only" in refusal(lambda: make_directory(small_disk / "d"))
    assert (small_disk / "a").read_text() == "old"


def test_directories_are_checked_before_work(tmp_path: Path) -> None:
    check_directory(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(lambda: check_directory(tmp_path / "file", NAME))
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "gone").symlink_to("nowhere")
    for place in ("itself", "gone", "file/a"):
        assert NAME in refusal(partial(check_directory, tmp_path / place, NAME))
        assert NAME in refusal(partial(make_directory, tmp_path / place, NAME))
    assert NAME in refusal(lambda: check_directory("/proc/a", NAME))


# disks


def _tensors(part: Path) -> None:
    save_file({"x": torch.zeros(1_000_000)}, part)


def _torch(part: Path) -> None:
    torch.save({"x": torch.zeros(1_000_000)}, part)


def _bytes(part: Path) -> None:
    part.write_bytes(bytes(1_000_000))


def _parquet(part: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": torch.rand(200_000).numpy()}), part)


def _figure(part: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 20))
    figure.add_subplot().imshow(torch.rand(900, 900).numpy())
    figure.savefig(part, format="png", dpi=100)


def _tokenizer(part: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"word {number}": number for number in range(50_000)}
    Tokenizer(WordLevel(words, unk_token="word 0")).save(str(part))


@pytest.mark.parametrize("write", [_bytes, _tensors, _torch, _parquet, _figure, _tokenizer])
def test_a_full_disk(write: Callable[[Path], None], small_disk: Path) -> None:
    """Whatever writes, in a language of its own or not: one line, and the old file is whole."""
    (small_disk / "a").write_text("old")

    def run() -> None:
        with whole_file(small_disk / "a") as part:
            write(part)

    said = refusal(run)
    assert said.startswith(f"{small_disk / 'a'} cannot be written: ")
    assert "disk is full" in said
    assert os.listdir(small_disk) == ["a"]
    assert (small_disk / "a").read_text() == "old"


def test_a_full_disk_and_a_directory(small_disk: Path) -> None:
    (small_disk / "d").mkdir()
    (small_disk / "d" / "old").write_text("old")

    def run() -> None:
        with new_directory(small_disk / "d", overwrite=True) as folder:
            (folder / "small").write_text("x")
            _tensors(folder / "x")

    assert "the disk is full" in refusal(run)
    assert os.listdir(small_disk) == ["d"]
    assert os.listdir(small_disk / "d") == ["old"]


def test_a_limit_of_the_system(short_files: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="larger than is allowed here"):
        write_whole(tmp_path / "a", bytes(short_files + 1))
    assert not os.listdir(tmp_path)
    write_whole(tmp_path / "a", bytes(short_files))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG]
)
def test_every_reason_is_one_line(number: int) -> None:
    def run() -> None:
        with writing("F"):
            raise OSError(number, os.strerror(number))

    assert refusal(run).startswith("F cannot be written: ")


def test_other_errors_pass() -> None:
    for error in (OSError(errno.ECONNRESET, "x"), ValueError("x"), RuntimeError("(os error 28)")):
        with pytest.raises(type(error)) as caught, writing("F"):
            raise error
        assert caught.value is error


def test_predictions_on_a_full_disk(small_disk: Path) -> None:
    """The rows that were whole stay, and no half of one."""
    file = PredictionFile(small_disk / "p" / "a.jsonl").open()
    for number in range(3):
        file.append({"id": str(number), "pred": "x"})
    said = refusal(lambda: file.append({"id": "3", "pred": "x" * 1_000_000}))
    assert "a.jsonl cannot be written: the disk is full" in said
    lines = (small_disk / "p" / "a.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["id"] for line in lines[:-1]] == ["0", "1", "2"]
    assert not lines[-1]
    file.append({"id": "4", "pred": "x"})
    file.finish(["0", "1", "2", "4"])
    again = PredictionFile(small_disk / "p" / "a.jsonl").open()
    assert list(again.done) == ["0", "1", "2", "4"]
    again.finish(["0", "1", "2", "4"])


# a directory


def test_a_directory_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "up" / "d") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert not os.listdir(tmp_path / "up")
    with new_directory(tmp_path / "up" / "d") as folder:
        (folder / "x").write_text("x")
    assert os.listdir(tmp_path / "up") == ["d"]
    with new_directory(tmp_path / "up" / "d", overwrite=True) as folder:
        (folder / "y").write_text("y")
    assert os.listdir(tmp_path / "up") == ["d"]
    assert os.listdir(tmp_path / "up" / "d") == ["y"]


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_directory(tmp_path / "link") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["x"]


def test_a_directory_that_was_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    def run() -> None:
        with new_directory(tmp_path / "d") as folder:
            (folder / "x").write_text("mine")
            (tmp_path / "d").mkdir()
            (tmp_path / "d" / "y").write_text("another's")

    assert "meanwhile" in refusal(run)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["y"]


# one place


@pytest.mark.parametrize(
    "words", [".write_text(", ".write_bytes(", ".mkdir(", "makedirs(", "umask(", "mkdtemp("]
)
def test_all_writing_goes_through_one_file(words: str) -> None:
    """Except for places that are no file system of this machine's (`_remote`)."""
    files = [
        file.name
        for file in PACKAGE.rglob("*.py")
        if words in file.read_text("utf-8").replace(f"_remote.{words.strip('.')}", "")
    ]
    assert set(files) <= {"files.py"}
