"""The package's C, compiled by the system's compiler when it is first used, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.files import check_output, make_directory, write_whole
from remamba.ops.recording import GRADIENT, takes_recorded_form

logger = logging.getLogger(__name__)

OPS = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
"""Tried in this order, after the one that the environment variable CC names."""
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")
"""-O2 and what the sources say of loops is as fast as -O3, and compiled in two thirds of the time.
Never -ffast-math: it takes the rounding out of the exponential."""
THREADED = ("-fopenmp",)
"""The library is not linked with a runtime of its own: it finds torch's, and shares its threads."""
PATIENCE = 300
"""Seconds that a compiler may take."""

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The elements that kernels read, as vector.h numbers them."""


def function(name: str) -> Any:
    """A function of the library: it takes one `struct.pack`ed argument block and returns nothing.

    Only where `obstacle` is empty.
    """
    library, why = _library()
    assert library is not None, why
    found = getattr(library, name)
    found.argtypes, found.restype = [ctypes.c_char_p], None
    return found


def obstacle() -> str:
    """Why the C kernels cannot run here, in one line; empty when they can."""
    return _library()[1]


def where() -> str:
    """The file that the kernels run from; empty where they cannot run."""
    library, _ = _library()
    return "" if library is None else str(library._name)


def unfit(*tensors: Tensor | None) -> str:
    """Why C kernels cannot take these tensors; empty when they can.

    They give no gradient, and read dense float32 and bfloat16 of a CPU's memory.
    """
    if takes_recorded_form(*tensors):
        return GRADIENT
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transformation of torch.func"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    for t in tensors:
        if t is None:
            continue
        if t.dtype not in TYPES:
            return "a dtype that is neither float32 nor bfloat16"
        if type(t) not in (Tensor, torch.nn.Parameter):
            return "a tensor of another class"
    return ""


def side_by_side(t: Tensor) -> Tensor:
    """t, copied unless the values of its last axis lie side by side in memory."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def as_float(t: Tensor | None) -> Tensor | None:
    """A small parameter as dense float32."""
    return None if t is None else t.detach().float().contiguous()


def address(t: Tensor | None) -> int:
    """Where a tensor's first value lies; 0 for None."""
    return 0 if t is None else t.data_ptr()


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library, or why there is none; asked and answered once a process."""
    if os.name != "posix":
        return None, "compiled on POSIX systems alone"
    compiler = _compiler()
    if compiler is None:
        return None, "no C compiler is installed (cc, gcc, clang, or the one that CC names)"
    why = ""
    for threads in (THREADED, ()):
        try:
            return _load(compiler, (*FLAGS, _tuned(), *threads)), ""
        except (InputError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            # the first reason is the one that matters
            why = why or " ".join(str(error).split())
            logger.info("the C kernels with %s: %s", threads or "one thread", why)
            if isinstance(error, InputError):
                break
    return None, why


def _compiler() -> list[str] | None:
    """The command that compiles C; None when there is none."""
    asked = shlex.split(os.environ.get("CC", ""))
    for words in ([asked] if asked else []) + [[name] for name in COMPILERS]:
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    return None


def _tuned() -> str:
    """The flag for the processor's own instructions."""
    is_x86 = platform.machine() in ("x86_64", "AMD64", "i686")
    return "-march=native" if is_x86 else "-mcpu=native"


def _load(compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    """The library from the user's cache, where it is compiled first if need be.

    A name holds the digest of what the file must hold, so that one that was damaged is not loaded.
    """
    folder, key = _cache_folder(), _key(compiler, flags)
    path = _kept(folder, key)
    if path is None:
        make_directory(folder)
        check_output(folder / "lock")
        with _one_at_a_time(folder / "lock"):
            path = _kept(folder, key)  # others may have been here meanwhile
            if path is None:
                content = _compile(compiler, flags)
                path = folder / f"{key}-{hashlib.sha256(content).hexdigest()}.so"
                write_whole(path, content)
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)


def _kept(folder: Path, key: str) -> Path | None:
    """The library of this key that is whole, if there is one."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.stem.partition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest():
            return path
    return None


@contextmanager
def _one_at_a_time(place: Path) -> Iterator[None]:
    """Processes pass one after another; where files cannot be locked, all at once."""
    import fcntl

    with open(place, "ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "remamba" / "kernels"


def _sources() -> list[Path]:
    """Every C file of the ops, and the headers that they share."""
    return sorted([*OPS.rglob("*.c"), *OPS.rglob("*.h")])


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    """Names what a library is made of: source, flags, compiler and processor."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=PATIENCE)
    digest.update(repr((compiler, os.path.realpath(compiler[0]), flags)).encode() + version.stdout)
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor's name and instruction sets, as far as the system tells."""
    told = {platform.machine(), platform.processor()}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(sorted(told | {line for line in lines if line.startswith(wanted)}))


def _compile(compiler: list[str], flags: tuple[str, ...]) -> bytes:
    """The library's bytes.

    Raises:
        RuntimeError: the compiler's first complaint.
    """
    files = [str(path) for path in _sources() if path.suffix == ".c"]
    logger.info("compiling the C kernels with %s %s", " ".join(compiler), " ".join(flags))
    with tempfile.TemporaryDirectory() as place:
        objects, library = os.path.join(place, "kernels.o"), os.path.join(place, "kernels.so")
        everything = os.path.join(place, "kernels.c")
        with open(everything, "w", encoding="utf-8") as file:
            file.writelines(f'#include "{name}"\n' for name in files)
        for words in (
            [*compiler, *flags, f"-I{OPS}", "-c", everything, "-o", objects],
            # without the flags: -fopenmp would bring a second runtime along
            [*compiler, "-shared", objects, "-lm", "-o", library],
        ):
            done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode:
                said = done.stderr.splitlines() or [f"exit code {done.returncode}"]
                first = next((line for line in said if "error" in line.lower()), said[0])
                raise RuntimeError(f"{compiler[0]} cannot compile the kernels: {first}")
        return Path(library).read_bytes()
