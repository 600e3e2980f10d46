"""A folder of tiny models and a document, and commands run as a person runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from remamba import cli
from tests.tiny import BEFORE, PAPER, TEXT, WHOLE, Run, save_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with three kinds of settings, and a document."""
    path = tmp_path_factory.mktemp("commands")
    for name, settings in (("whole", WHOLE), ("before", BEFORE), ("paper", PAPER)):
        save_tiny(path / name, compression=settings, question_template="\nQ: {question}\nA:")
    (path / "doc.txt").write_text(TEXT * 4, encoding="utf-8")
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must be refused; returns its one line."""

    def run(*argv: object) -> str:
        capsys.readouterr()  # what the test itself printed before
        assert cli.main([str(word) for word in argv]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1 and said.err.startswith("remamba: "), said.err
        return said.err

    return run
