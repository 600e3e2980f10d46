"""Shared by all tests: the one tolerance table, seeds, poisoned memory, and an offline hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from remamba import cli

Run = Callable[..., Any]

# triton reads this when it is first imported: the kernels then run on the CPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}
"""dtype -> (rtol, atol). The only tolerances of the project; never loosened to make a test pass."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(42)


@pytest.fixture
def tolerance() -> dict[torch.dtype, tuple[float, float]]:
    """dtype -> (rtol, atol)."""
    return TOLERANCES


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """`assert_close(actual, expected, dtype=None)`: equal within the table's row for the dtype.

    The dtype is the expected tensor's own unless named. Shapes and devices must agree too.
    """

    def check(
        actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None
    ) -> None:
        rtol, atol = TOLERANCES[dtype or expected.dtype]
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)

    return check


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that package code takes uninitialised is full of NaN, or of the largest integer.

    So a kernel that reads what it never wrote is caught instead of passing on fresh zeros.
    """

    def poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("remamba") or tensor.device.type == "meta":
                return tensor
            return _poison(tensor)

        return call

    # torch notes once which functions make tensors, for `with torch.device(...)`: the real ones
    with torch.device("meta"):
        torch.empty(0)
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoning(getattr(torch.Tensor, name)))


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture(autouse=True)
def _poison_ops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the ops runs on poisoned memory."""
    if Path(__file__).parent / "ops" in request.node.path.parents:
        request.getfixturevalue("poisoned_memory")
    yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, which is really full when it is full; only root can have one."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def remamba(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its stdout, parsed where --json was given."""

    def run(*argv: object) -> Any:
        capsys.readouterr()
        assert cli.main([str(word) for word in argv]) == 0
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in argv else out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must be refused; returns its one line."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert cli.main([str(word) for word in argv]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        lines = said.err.splitlines()
        assert lines[-1].startswith("remamba: ") and "Traceback" not in said.err, said.err
        return lines[-1]

    return run


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes rows as JSON lines; a row given as bytes is written as it is."""

    def rows(path: Path, *rows: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return rows
