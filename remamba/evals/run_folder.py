"""RunFolder: the directory of an evaluation, new, resumed or replaced; run.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remamba.errors import InputError
from remamba.evals.predictions import FOLDER
from remamba.files import check_directory, holds_nothing, make_directory, write_whole, writing

RECORD_FILE = "run.json"
WRITTEN = (FOLDER, RECORD_FILE, "scores.json", "report.md", "report.json", "report.png")
"""What a run puts into its directory, and so what --overwrite takes away."""


class RunFolder:
    """The output directory of a run. Nothing in it changes before `prepare`.

    Args:
        written: what the run puts into it, and so what `overwrite` takes away.

    Raises:
        InputError: it holds files and neither --resume nor --overwrite was given, or files that
            no run wrote, or nothing can be written there.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        written: Sequence[str] = WRITTEN,
    ):
        if resume and overwrite:
            raise InputError("--resume continues a run and --overwrite drops it; give one of them")
        self.path, self._written = path, written
        self._resume, self._replaces = False, False
        check_directory(path, f"--output {path}")
        if not path.is_dir() or holds_nothing(path):
            return
        if not (path / RECORD_FILE).is_file():
            raise InputError(
                f"--output {path} holds files that are no evaluation (no {RECORD_FILE}); choose "
                "another directory"
            )
        if not (resume or overwrite):
            raise InputError(
                f"--output {path} already holds an evaluation; choose another directory, or give "
                "--resume or --overwrite"
            )
        self._resume, self._replaces = resume, overwrite

    def prepare(self, settings: dict[str, Any], facts: dict[str, Any]) -> None:
        """Makes the directory ready and writes run.json.

        Args:
            settings: what makes the predictions; a resumed run must have the same.
            facts: what else run.json tells.

        Raises:
            InputError: the run that is to be resumed has other settings.
        """
        settings = json.loads(json.dumps(settings))
        if self._resume:
            self._check_same(settings)
        if self._replaces:
            with writing(self.path):
                for name in self._written:
                    place = self.path / name
                    if place.is_dir() and not place.is_symlink():
                        shutil.rmtree(place)
                    else:
                        place.unlink(missing_ok=True)
        make_directory(self.path)
        self._record = {"status": "running", "settings": settings, **facts}
        self._write()

    def _check_same(self, settings: dict[str, Any]) -> None:
        was = read_record(self.path)["settings"]
        for name in sorted({*was, *settings}):
            if was.get(name) != settings.get(name):
                raise InputError(
                    f"--resume: {self.path} was begun with {name} = {was.get(name)!r:.80}, and not "
                    f"{settings.get(name)!r:.80}; give the same, or another --output"
                )

    def finish(self, **facts: Any) -> None:
        """Notes in run.json that the run is complete."""
        self._record |= {"status": "finished", **facts}
        self._write()

    def _write(self) -> None:
        write_whole(self.path / RECORD_FILE, json.dumps(self._record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a run's run.json.

    Raises:
        InputError: it is missing or no run's.
    """
    file = folder / RECORD_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["settings"], dict):
            raise TypeError("its settings are no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no evaluation's ({error}); choose a run's folder") from error
    return record
