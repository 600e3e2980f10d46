"""RunFolder: the directory of a training run, new, resumed or replaced; log and train.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from remamba.configuration_remamba import reading_of
from remamba.errors import InputError
from remamba.fields import check_value
from remamba.files import check_directory, holds_nothing, make_directory, write_whole, writing
from remamba.pretrained import locate
from remamba.train.checkpoints import WRITING, last_checkpoint, step_of
from remamba.train.config import TrainArgs, check_resumable
from remamba.train.curves import CURVES_FILE, draw_curves
from remamba.train.progress import is_main_process, say

RECORD_FILE, LOG_FILE, METER_FILE = "train.json", "log.jsonl", "meter.json"
GRADIENTS_FILE = "gradients.json"
WRITTEN = (
    "checkpoint-*", WRITING, "*.safetensors", "*.safetensors.index.json", "config.json",
    RECORD_FILE, LOG_FILE, GRADIENTS_FILE, "adapter_config.json", "compression.json",
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.jinja", "additional_chat_templates", CURVES_FILE,
)  # fmt: skip
"""What a run puts into its directory, and so what --overwrite takes away."""


def _check_record(record: Any) -> None:
    """Raise InputError for a train.json that no run can have written.

    Its `args` are compared with those given, one by one, and used for nothing else.
    """
    check_value("train.json", record, dict)
    for name in ("args", "base_reading", "data"):
        value = record.get(name)
        if name == "args" or value is not None:
            check_value(name, value, dict)
    for path, digest in (record.get("data") or {}).items():
        check_value(f"data, {path}", digest, str)
    if record.get("base_reading"):
        reading_of(record["base_reading"])


class RunFolder:
    """The output directory of a run. Nothing in it changes before `prepare`.

    Raises:
        InputError: it holds files and neither --resume nor --overwrite was given, or --overwrite
            would replace something that no run wrote, or the base or the data of this one, or
            --resume would continue another run, or nothing can be written there.
    """

    def __init__(self, args: TrainArgs):
        self.path = Path(args.output)
        self.record: dict[str, Any] = {}
        self.checkpoint: Path | None = None
        self._replaces = False
        if not is_main_process():
            # the first process looks and refuses; the others would race with its files
            if args.resume:
                self._continue(args)
            return
        check_directory(self.path, f"--output {self.path}")
        if self.path.is_dir() and not holds_nothing(self.path):
            self._judge(args)

    @property
    def step(self) -> int:
        """Steps done by the checkpoint that is continued; 0 in a new run."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)

    def _judge(self, args: TrainArgs) -> None:
        is_run = (self.path / RECORD_FILE).is_file()
        if args.overwrite and is_run:
            self._check_replaceable(args)
            self._replaces = True
        elif args.resume and is_run:
            self._continue(args)
        elif args.overwrite or args.resume:
            raise InputError(
                f"--output {self.path} holds files that are no training run (no {RECORD_FILE}); "
                "choose another directory"
            )
        else:
            holds = "a training run" if is_run else "files"
            raise InputError(
                f"--output {self.path} already holds {holds}; choose another directory"
                + (", or give --resume or --overwrite" if is_run else "")
            )

    def _check_replaceable(self, args: TrainArgs) -> None:
        base = Path(locate(args.base))
        if base.exists() and base.resolve().is_relative_to(self.path.resolve()):
            raise InputError(
                f"--base {args.base} lies in --output {self.path}, which --overwrite would clear; "
                "choose another --output"
            )
        taken = [path.resolve() for path in self._written()]
        for file in args.data:
            if any(Path(file).resolve().is_relative_to(path) for path in taken):
                raise InputError(
                    f"--data {file} is one of the files that --overwrite would clear from "
                    f"--output {self.path}; move it"
                )

    def _written(self) -> list[Path]:
        return [path for pattern in WRITTEN for path in self.path.glob(pattern)]

    def prepare(self) -> None:
        """Makes the directory ready, now that the run has been found fit to begin.

        A replaced run is cleared away. A resumed one forgets what was logged after its checkpoint,
        since those steps are done again.
        """
        if not is_main_process():
            return
        if self._replaces:
            with writing(self.path):
                for path in self._written():
                    is_folder = path.is_dir() and not path.is_symlink()
                    shutil.rmtree(path) if is_folder else path.unlink()
        make_directory(self.path)
        shutil.rmtree(self.path / WRITING, ignore_errors=True)
        if self.record:
            self._cut_log(self.step)

    def _continue(self, args: TrainArgs) -> None:
        if not (self.path / RECORD_FILE).is_file():
            return
        try:
            self.record = json.loads((self.path / RECORD_FILE).read_text(encoding="utf-8"))
            _check_record(self.record)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self.path / RECORD_FILE} cannot be read ({error}); start again with --overwrite"
            ) from error
        check_resumable(args, self.record["args"])
        self.checkpoint = last_checkpoint(self.path)
        if self.checkpoint is None:
            say(f"{self.path} has no checkpoint yet: starting from the beginning")

    def _cut_log(self, step: int) -> None:
        log = self.path / LOG_FILE
        if log.is_file():
            kept = []
            for line in log.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except ValueError:  # the line that was being written when the run ended
                    continue
            write_whole(log, "".join(kept))

    def check_hashes(self, hashes: dict[str, str]) -> None:
        """Raise InputError when a resumed run's data files have changed."""
        for path, digest in (self.record.get("data") or {}).items():
            if hashes.get(path) != digest:
                raise InputError(
                    f"--data {path} has changed since the run in {self.path} began; resume with "
                    "the file as it was, or start another run"
                )

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes train.json."""
        if is_main_process():
            self.record = record
            write_whole(self.path / RECORD_FILE, json.dumps(record, indent=2) + "\n")

    def draw_curves(self) -> None:
        """Draws curves.png from the log, where matplotlib is installed."""
        log = self.path / LOG_FILE
        if not is_main_process() or not log.is_file():
            return
        try:
            draw_curves(log, self.path / CURVES_FILE, self.path.resolve().name)
        except ImportError:
            say(f"no {CURVES_FILE}: matplotlib is not installed (pip install matplotlib)")

    def write_gradients(self, norms: dict[str, float]) -> None:
        """Writes gradients.json: the norm before the first step of each trained tensor."""
        if norms and is_main_process():
            write_whole(self.path / GRADIENTS_FILE, json.dumps(norms, indent=2) + "\n")
