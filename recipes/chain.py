"""Commands that follow one another: what is finished is skipped, so that a chain that was cut off
goes on where it was, and branches go round the GPUs."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
Options = dict[str, Any]


class Chain:
    """Commands that follow one another.

    Args:
        python: the interpreter.
        data: folder of the rows, and in cache/ of their tokens.
        models: folder of the runs.
    """

    def __init__(self, python: str, data: Path, models: Path):
        self.interpreter, self.data, self.models = python, data, models
        path = os.environ.get("PYTHONPATH")
        self.environment = {
            # batches of many shapes leave holes, and three processes a GPU have no room for them
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{path}" if path else str(ROOT),
        }
        self._begun = time.monotonic()
        self._is_interrupted = False
        self._writing: list[tuple[str, subprocess.Popen]] = []

    def say(self, what: str, log: TextIO | None = None) -> None:
        """A line in the log, or on stderr."""
        seconds = int(time.monotonic() - self._begun)
        print(f"== {what} ({seconds} s in all)", file=log or sys.stderr, flush=True)

    def python(self, *given: object, log: TextIO | None = None, gpu: str | None = None) -> None:
        """Runs `python GIVEN...`; what it says goes to the log.

        Raises:
            CalledProcessError: it failed.
        """
        environment = self.environment | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        command = [self.interpreter, *map(str, given)]
        if self._is_interrupted:
            raise subprocess.CalledProcessError(130, command)
        errors = None if log is None else subprocess.STDOUT
        subprocess.run(command, stdout=log, stderr=errors, env=environment, check=True)

    def train(
        self,
        run: str,
        base: str,
        files: Sequence[str],
        options: Options,
        log: TextIO | None = None,
        gpu: str | None = None,
    ) -> None:
        """One run of `remamba train`, unless it is finished."""
        record = self.models / run / "train.json"
        if read_json(record).get("status") == "finished":
            self.say(f"{run}: is there", log)
            return
        self.say(run, log)
        given = {
            "base": self.models / base,
            "data": [self.data / f"{name}.jsonl" for name in files],
            "data_cache": self.data / "cache",
            "output": self.models / run,
            "save_steps": 0,
            **options,
            "overwrite": True if record.is_file() else None,  # was cut off
        }
        self.python("-m", "remamba", "train", *words(given), log=log, gpu=gpu)

    def write(self, name: str, options: Options) -> None:
        """Begins a file of planted data, unless it is there; see `wait_for_data`."""
        file = self.data / f"{name}.jsonl"
        if file.is_file():
            self.say(f"data {name}: is there")
            return
        self.say(f"data {name}")
        command = [self.interpreter, "-m", "remamba", "data", "build", "planted"]
        command += words({"output": file, **options})
        self._writing.append((name, subprocess.Popen(command, env=self.environment)))

    def wait_for_data(self) -> None:
        """Returns when all files that were begun are there.

        Raises:
            CalledProcessError: one was not written.
        """
        while self._writing:
            name, process = self._writing[0]
            if code := process.wait():
                raise subprocess.CalledProcessError(code, ["remamba", "data", "build", name])
            del self._writing[0]
            self.say(f"data {name}: written")

    def end_data(self) -> None:
        """Ends what still writes data, where the chain has failed."""
        for _, process in self._writing:
            process.terminate()

    def on_gpus(
        self,
        names: Sequence[str],
        gpus: Sequence[str | None],
        jobs: int,
        work: Callable[[str, TextIO, str | None], None],
    ) -> list[Path]:
        """Calls `work(name, log, gpu)` for each name; one that fails does not stop the others.

        Args:
            gpus: numbers of the GPUs; none is the one that torch takes.
            jobs: of how many at once each GPU is given.

        Returns:
            The logs of those that failed.
        """
        folder = self.models / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        places: queue.Queue[str | None] = queue.Queue()
        for gpu in list(gpus or [None]) * jobs:
            places.put(gpu)
        failed = []

        def take(name: str) -> None:
            gpu = places.get()
            path = folder / f"{name}.log"
            self.say(f"{name}: GPU {gpu or 'first'}, log in {path}")
            with path.open("w", encoding="utf-8") as log:
                try:
                    work(name, log, gpu)
                except (subprocess.CalledProcessError, OSError) as error:
                    self.say(f"{name} failed: {error}", log)
                    failed.append(path)
            places.put(gpu)

        with ThreadPoolExecutor(places.qsize()) as pool:
            try:
                for running in [pool.submit(take, name) for name in names]:
                    running.result()
            except BaseException:
                self._is_interrupted = True  # what runs goes on to its end, and nothing begins
                raise
        return failed


def words(options: Options) -> list[str]:
    """Options as a command line has them; None is left out, True is a flag."""
    found = []
    for name, value in options.items():
        if value is not None:
            found.append("--" + name.replace("_", "-"))
            values = value if isinstance(value, (tuple, list)) else [value]
            found += [str(one) for one in values if one is not True]
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
