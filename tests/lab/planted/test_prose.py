"""Books become paragraphs of plain prose, from whatever file they come."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from lab.planted.prose import read_books, split_sentences
from remamba.errors import InputError

SENTENCES = [
    "It was late when Mr. Grey came down to the harbour.",
    '"You will not find a boat tonight," said the keeper, "nor tomorrow."',
    "The wind had risen, and nobody answered him!",
]
BOOK = "\r\n\r\n".join(
    [
        "# A Book",
        "## CHAPTER I.",
        *(f"On day {i} it rained.\r\n" + " ".join(SENTENCES[: i % 4]) for i in range(8)),
    ]
)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "books.jsonl.xz"
    path.write_bytes(lzma.compress(json.dumps({"title": "A Book", "text": BOOK}).encode()))
    return path


def test_books_become_paragraphs_of_plain_prose(book: Path) -> None:
    (paragraphs,) = read_books([book])
    assert len(paragraphs) == 8
    assert paragraphs[1] == "On day 1 it rained. " + SENTENCES[0]
    assert not any("\n" in p or "  " in p or p.startswith("#") for p in paragraphs)
    assert split_sentences(SENTENCES[0] + " " + SENTENCES[2]) == [SENTENCES[0], SENTENCES[2]]


def test_a_book_may_be_plain_text(book: Path, tmp_path: Path) -> None:
    packed = tmp_path / "book.txt.xz"
    packed.write_bytes(lzma.compress(BOOK.encode()))
    (tmp_path / "book.md").write_text(BOOK, encoding="utf-8", newline="")
    assert read_books([packed, tmp_path / "book.md"]) == read_books([book]) * 2


def test_what_is_no_book_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"bad\.txt: not UTF-8"):
        read_books([tmp_path / "bad.txt"])
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"title": "x"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2: a book is"):
        read_books([tmp_path / "bad.jsonl"])
    (tmp_path / "empty.txt").write_text("# Nothing\n")
    with pytest.raises(InputError, match="no prose in these files"):
        read_books([tmp_path / "empty.txt"])
    with pytest.raises(InputError, match="there is no such file"):
        read_books([tmp_path / "none.txt"])
