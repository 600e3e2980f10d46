"""What tests of the planted suite share."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

KINDS = {
    "ABBR:abb": "What does the short form {} stand for ?",
    "ENTY:animal": "What animal is called {} ?",
    "DESC:def": "What is the meaning of {} ?",
    "HUM:ind": "Who was the captain of {} ?",
    "LOC:city": "Which city lies beside {} ?",
    "NUM:count": "How many people live in {} ?",
}


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of labelled questions, as TREC's are."""
    path = tmp_path_factory.mktemp("classes") / "classes.txt.xz"
    lines = [
        f"{kind} {text.format(f'café {i}')}" for i in range(60) for kind, text in KINDS.items()
    ]
    path.write_bytes(lzma.compress("\n".join(lines).encode("latin-1")))
    return path
