"""What a model answered: rows of predictions/<dataset>.jsonl, read for scoring, grown by a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.files import make_directory, write_whole, writing
from remamba.json_lines import JsonLines, Row, parse

FOLDER = "predictions"


class Prediction(NamedTuple):
    """One answer of a model, and what it is compared with."""

    id: str | None
    pred: str
    answers: list[str]
    all_classes: list[str] | None
    length: int | None
    failed: bool
    """The model could not answer; it counts as zero."""
    row: Row
    """All that the file says."""


def dataset_files(folder: Path, datasets: Sequence[str], task: str) -> dict[str, Path]:
    """The prediction files of a run by dataset, in the order of `datasets`.

    `qasper.jsonl`, and `qasper.pred.jsonl` as L-Eval names its files.

    Raises:
        InputError: there is none, or one is no dataset's.
    """
    place = folder / FOLDER
    if not place.is_dir():
        raise InputError(f"{place} is no directory; put the predictions of {task} there")
    found: dict[str, Path] = {}
    for file in sorted(place.glob("*.jsonl")):
        name = file.name.removesuffix(".jsonl").removesuffix(".pred")
        if name not in datasets:
            raise InputError(f"{file} is none of {task}'s; its files are {', '.join(datasets)}")
        if name in found:
            raise InputError(f"{found[name]} and {file} are the same dataset; remove one")
        found[name] = file
    if not found:
        raise InputError(f"{place} holds no <dataset>.jsonl; predict first")
    return {name: found[name] for name in datasets if name in found}


def read_predictions(file: Path, *, with_length: bool = False) -> list[Prediction]:
    """The predictions in a file.

    A row has `pred` and `answers`, or as L-Eval writes it `<model>_pred` and `gt`.

    Args:
        with_length: rows must tell the `length` of their text.

    Raises:
        InputError: a row lacks a field, or has an id that another row has.
    """
    found: list[Prediction] = []
    ids: dict[str, int] = {}
    for number, row in enumerate(JsonLines(file), 1):
        name = _identifier(row)
        if name is not None and ids.setdefault(name, number) != number:
            raise InputError(f"{row.where}: id {name!r} is also that of row {ids[name]}")
        if failed := row.get("error") is not None:
            row.get_text("error")
        found.append(
            Prediction(
                name,
                "" if failed else row.get_text(_prediction_field(row)),
                [row.get_text("gt")] if "answers" not in row and "gt" in row else _answers(row),
                None if row.get("all_classes") is None else row.get_texts("all_classes"),
                row.get_number("length") if with_length else None,
                failed,
                row,
            )
        )
    return found


def _answers(row: Row) -> list[str]:
    if not (answers := row.get_texts("answers")):
        raise InputError(f"{row.where}: 'answers' is empty; a prediction needs one to compare with")
    return answers


def _prediction_field(row: Row) -> str:
    if "pred" in row:
        return "pred"
    return next((name for name in row if "_pred" in name), "pred")


def _identifier(row: Row) -> str | None:
    name = row.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise InputError(f"{row.where}: 'id' is {name!r:.40}; it must be a text or a number")
    return None if name is None else str(name)


class PredictionFile:
    """A file of predictions that grows by one line at a time and survives a kill.

    A line that was being written when a run ended is dropped when the file is opened again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.done: dict[str, Row] = {}
        """What is in the file, by id."""

    def open(self, *, drop_failed: bool = False) -> PredictionFile:
        """Ready to append.

        Args:
            drop_failed: forget the rows that carry an error.

        Raises:
            InputError: a whole line in the file is no prediction, or it cannot be written.
        """
        make_directory(self.path.parent)
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            row = parse(line, f"{self.path}:{number}")
            if not (drop_failed and row.get("error") is not None):
                self.done[row.get_text("id")] = row
        if drop_failed:
            write_whole(self.path, b"".join(map(_line, self.done.values())))
        with writing(self.path):
            self._file = self.path.open("ab", buffering=0)
            if not drop_failed and whole != content:
                self._file.truncate(len(whole))
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Writes one prediction, in one piece.

        Raises:
            InputError: the disk is full; the file is then as it was.
        """
        line, size = _line(row), os.fstat(self._file.fileno()).st_size
        with writing(self.path):
            try:
                # a disk that is nearly full takes a part of a line
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(size)
                raise
        self.done[row["id"]] = Row(row, str(self.path))

    def finish(self, order: Sequence[str]) -> None:
        """Closes the file, its rows in the order of the data."""
        self._file.close()
        lines = b"".join(_line(self.done[name]) for name in order)
        if lines != self.path.read_bytes():
            write_whole(self.path, lines)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
