"""The files of the open test: one for each length, the same from the same books for every model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lab.planted.build import build_planted, manifest_of
from lab.planted.disjoint import check_apart
from lab.planted.open_test import SPLIT
from lab.planted.suite import OPEN, Options
from remamba.errors import InputError
from remamba.train.records import file_hash

SEED = 1
A_DOCUMENT = 8
"""Questions about a document."""


def build_open(
    books: Sequence[Path],
    folder: Path,
    lengths: Sequence[int],
    questions: int,
    apart_from: Sequence[Path] = (),
) -> list[Path]:
    """The files, of which those that are missing are made.

    Args:
        questions: of each level and length, about.
        apart_from: what the model to be asked was trained on, see `check_apart`.

    Raises:
        InputError: a file that is there is of other books, or of another number of questions; or
            a word or sentence of the test occurs in what the model was trained on.
    """
    check_apart(apart_from)
    files = []
    for length in lengths:
        near = (length * 9 // 10, length * 11 // 10)
        options = Options(tasks=OPEN, tokens=near, questions=A_DOCUMENT, split=SPLIT, seed=SEED)
        documents = len(OPEN) * -(-questions // A_DOCUMENT)
        file = folder / f"open-{length}.jsonl"
        if file.exists():
            _check_same(file, books, options, documents)
        else:
            build_planted(books, file, documents, options)
        files.append(file)
    return files


def _check_same(file: Path, books: Sequence[Path], options: Options, documents: int) -> None:
    manifest = manifest_of(file)
    try:
        made = json.loads(manifest.read_text(encoding="utf-8"))
        was = made["options"], made["rows"], sorted(made["inputs"].values())
        sha256 = made["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--data {file}: its {manifest.name} cannot be read ({error}); remove the file, and it "
            "is made again"
        ) from error
    now = json.loads(json.dumps(asdict(options), default=str)), documents
    if was != (*now, sorted(file_hash(book) for book in books)) or file_hash(file) != sha256:
        raise InputError(
            f"--data {file}: it is of other books or options; give another folder, or the same "
            "--books and --questions"
        )
