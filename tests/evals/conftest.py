"""Folders of predictions and of data, and commands run as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remamba import cli
from tests.tiny import Run


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
