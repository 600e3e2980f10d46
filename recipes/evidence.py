#!/usr/bin/env python
"""The evidence: one base, and from it plain Mamba and the forms of ReMamba, all trained on the same
data in the same order for the same steps, then asked the planted suite.

    BOOKS=books OUT=evidence FAMILY=mamba2 python recipes/evidence.py

BOOKS     folder with train-*.jsonl.xz and dev.jsonl.xz, books as JSON lines with a "text"
OUT       folder for data, models and results
CLASSES   TREC's labelled questions (trec_train.txt); without them the task few-shot is left out
FAMILY    mamba2 or mamba (default: mamba2); the data serve both
SIZE      2m, 4m, 10m or 16m (default: 10m)
BASE_SEED seed of the base and of its training (default: 0); any other gets a folder of its own
SEEDS     seeds of a branch: order, questions, drawn ratios (default: "1 2 3"); branches that no
          conclusion rests on take the first alone
BRANCHES  names of recipes/branches.py (default: all of it); none ends with the base
ROWS      documents of the test at each length, 4 questions each (default: 512)
GPUS      numbers of the GPUs that branches are given to (default: the one that torch takes)
JOBS      branches that train at once on each GPU (default: 1); at 10 million parameters one takes
          15 to 30 GiB (Mamba): 3 fit in 80
PYTHON    interpreter with remamba[train,eval] (default: the one that runs this)
WORKERS   processes that write data (default: all cores)
WORLD     closed or open (default: closed). Open: the tokenizer is trained on books alone; facts are
          of the grammar of kinds, with made-up names and values, and questions come from the books'
          own prose, too; models are chosen by kinds and books held out, and asked the open test.
          Its data, tokenizer and models have folders of their own, which end in -open
SCALE     full, or toy: the whole chain in minutes on two CPU cores; it learns nothing

What is there already is skipped, so a chain that was cut off goes on where it was. The second
family may begin once the first has written the data. At 10 million parameters a branch reads about
40 million tokens, one that reads a part of the document again for each question 135; train.json of
each run tells what it took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from branches import BRANCHES, MAIN, SCALES, Scale, base_stages, branch_stages, conditions
from chain import Chain, Options, read_json, words

OPEN_TEST = (
    *("open-values", "open-names", "open-sentences", "open-questions", "open-all", "open-kinds"),
    *("open-apart", "open-next", "open-needle", "kinds", "prose", "facts"),
)
"""What models of the open world are asked: the open test first, then what is held out of their own
training, then the closed world's facts."""
OPEN_QUESTIONS = 8
"""Of a document; a cell has as many questions as ROWS."""


@dataclass(frozen=True)
class Settings:
    """What the environment says."""

    books: tuple[str, ...]
    dev_books: str
    classes: str
    out: Path
    family: str
    size: str
    base_seed: int
    branches: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: int
    is_open: bool
    gpus: tuple[str, ...]
    jobs: int
    python: str
    workers: int
    scale: Scale

    @property
    def tokenizer(self) -> Path:
        """Its folder."""
        return self.out / f"tokenizer{self.mark}"

    @property
    def mark(self) -> str:
        """What the folders of a world end in."""
        return "-open" if self.is_open else ""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Ends the program with code 2 where a variable cannot be used."""

        def given(name: str, default: str = "") -> str:
            return environment.get(name) or default

        def number(name: str, default: int, least: int = 1) -> int:
            value = given(name, str(default))
            if not value.isdecimal() or int(value) < least:
                fail(f"{name}={value}: give a whole number, {least} or more")
            return int(value)

        def one_of(name: str, default: str, allowed: tuple[str, ...]) -> str:
            if (value := given(name, default)) not in allowed:
                fail(f"{name}={value}: give {' or '.join(allowed)}")
            return value

        for name, what in (("BOOKS", "with train-*.jsonl.xz"), ("OUT", "for data and models")):
            if not given(name):
                fail(f"set {name} to the folder {what}")
        folder = Path(given("BOOKS"))
        books = sorted(map(str, folder.glob("train-*.jsonl.xz")))
        for found, wanted in ((books, "train-*"), ((folder / "dev.jsonl.xz").is_file(), "dev")):
            if not found:
                fail(f"{folder} holds no {wanted}.jsonl.xz; set BOOKS to the folder of books")
        scale = SCALES[one_of("SCALE", "full", ("full", "toy"))]
        is_toy = scale is SCALES["toy"]
        branches = given("BRANCHES", scale.branches).split()
        branches = [] if branches == ["none"] else branches
        if unknown := [name for name in branches if name not in BRANCHES]:
            fail(f"BRANCHES: {unknown[0]} is unknown; known are {' '.join(BRANCHES)}")
        seeds = given("SEEDS", scale.seeds).split()
        if not all(map(str.isdecimal, seeds)):
            fail(f"SEEDS={' '.join(seeds)}: give whole numbers, 0 or more")
        return cls(
            books=tuple(books[:1] if is_toy else books),
            dev_books=str(folder / "dev.jsonl.xz"),
            classes=given("CLASSES"),
            out=Path(given("OUT")),
            family=one_of("FAMILY", "mamba2", ("mamba", "mamba2")),
            size="toy" if is_toy else given("SIZE", "10m"),
            base_seed=number("BASE_SEED", 0, 0),
            branches=tuple(branches),
            seeds=tuple(map(int, seeds)),
            rows=number("ROWS", scale.rows),
            is_open=one_of("WORLD", "closed", ("closed", "open")) == "open",
            gpus=tuple(given("GPUS").split()),
            jobs=number("JOBS", 1),
            python=given("PYTHON", sys.executable),
            workers=number("WORKERS", os.cpu_count() or 1),
            scale=scale,
        )


def fail(message: str) -> NoReturn:
    print(f"evidence.py: {message}", file=sys.stderr)
    sys.exit(2)


def data_files(settings: Settings) -> dict[str, Options]:
    """The files of data and their options; the base begins with the first two."""
    scale = settings.scale
    classes: Options = {"classes": settings.classes or None}
    # Many of training's kinds of facts have any words for values: a model that knows its values
    # from training copies no others (docs/LOG.md, the first models of the evidence).
    opened, more_open = {"open_values": 0.5}, {"open_values": 0.75}
    # Short documents with the numbers that paragraphs have in long ones.
    high = {"first_paragraph": (1, 30)}
    # most of facts and of retrieval, which the claim is about
    weights = {"facts": 4, "two-hop": 2, "many-facts": 2, "retrieval": 4, "count": 1,
               "dictionary": 1, "code": 1}  # fmt: skip
    if settings.classes:
        weights["few-shot"] = 1
    every = {"tasks": tuple(weights), **classes}
    weighted = {**every, "weights": tuple(weights.values())}
    files: dict[str, Options] = {
        # short documents, dense with facts
        "short": {"tasks": ("facts", "many-facts", "two-hop", "dictionary"),
                  "weights": (5, 1, 1, 1), "tokens": (60, 160), "facts_per_1000": 50,
                  "questions": 6, "seed": 20, **opened},
        # one or two kinds of facts: only the name tells them apart. Values are training's own,
        # sentences few: with open values and all sentences names were not learnt (docs/LOG.md, the
        # third models of the evidence).
        "names": {"tasks": "facts", "kinds": (1, 2), "tokens": (60, 160), "facts_per_1000": 60,
                  "questions": 6, "sentences": 6, "echo": 0.8, "seed": 21},
        # the same in longer documents, with open values and all sentences
        "crowds": {"tasks": "facts", "kinds": (1, 3), "tokens": (150, 1000), "facts_per_1000": 30,
                   "questions": 6, "seed": 27, **opened},
        # as many facts of one kind in 2,000 tokens as there are in 8,000 where all kinds occur;
        # people often share a value
        "crowds-long": {"tasks": "facts", "kinds": (1, 4), "values": (4, 40),
                        "tokens": scale.long_tokens, "facts_per_1000": 30, "questions": 6,
                        "seed": 28, **more_open},
        # the shortest documents, of all kinds of facts
        "starts": {"tasks": "facts", "tokens": (50, 100), "facts_per_1000": 60, "questions": 3,
                   "seed": 26, **opened},
        # which of a few paragraphs a line is from
        "quotes": {"tasks": "retrieval", "tokens": (130, 300), "questions": 6, "seed": 25, **high},
        # plain text: the books and what is planted in them
        "text": {"tokens": (400, 1200), "no_questions": True, "seed": 22,
                 **opened, **high, **every},
        # all tasks; then as long as training goes
        "middle": {"tokens": scale.middle_tokens, "facts_per_1000": 30, "seed": 23,
                   **more_open, **high, **weighted},
        "long": {"tokens": scale.long_tokens, "facts_per_1000": 30, "seed": 24,
                 **more_open, **high, **weighted},
    }  # fmt: skip
    if settings.is_open:
        files = open_world(files)
        weights = {"kinds": 4, "prose": 3, "facts": 1}
        weighted = {"tasks": tuple(weights), "weights": tuple(weights.values())}
    for name, options in files.items():
        options |= {"books": settings.books, "documents": scale.documents[name]}
    # Other books, people, words, values and phrasings. What a form is chosen by; first whether
    # names are known at all: facts of one kind.
    held_out = {"books": settings.dev_books, "questions": 4, "seed": 90}
    tuning = {"split": "dev", "documents": scale.tune_rows, **held_out}
    one_kind: Options = {"tasks": "kinds" if settings.is_open else "facts", "kinds": (1, 1)}
    files["dev-150"] = {**one_kind, "tokens": (130, 170), "facts_per_1000": 50, **tuning}
    test = {"split": "test", "documents": settings.rows, **held_out}
    for lengths, options in ((scale.tune_lengths, tuning), (scale.test_lengths, test)):
        for length in lengths:
            near = (length * 9 // 10, length * 11 // 10)
            files[f"{options['split']}-{length}"] = {"tokens": near, **options, **weighted}
    if settings.is_open:
        documents = settings.rows * len(OPEN_TEST) // OPEN_QUESTIONS
        for length in scale.test_lengths:
            files[f"test-{length}"] |= {"tasks": OPEN_TEST, "weights": None, "documents": documents,
                                        "questions": OPEN_QUESTIONS,
                                        "apart_from": settings.books}  # fmt: skip
    given = {"tokenizer": settings.tokenizer, "workers": settings.workers}
    return {name: {**options, **given} for name, options in files.items()}


def open_world(files: dict[str, Options]) -> dict[str, Options]:
    """The files of training, with facts of the grammar of kinds and questions from prose.

    Single facts are of kinds; documents that only names tell apart have few of them, as have those
    of the closed world. The shortest documents are longer, since names and values are several
    tokens each. Lists, two hops, paragraphs, words and code stay as they are.
    """
    weights = {"kinds": 5, "prose": 4, "facts": 1, "two-hop": 1, "many-facts": 1, "retrieval": 2,
               "dictionary": 1, "code": 1}  # fmt: skip
    every: Options = {"tasks": tuple(weights), "weights": tuple(weights.values()), "classes": None}
    changes: dict[str, Options] = {
        "short": {"tasks": ("kinds", "facts", "many-facts", "two-hop", "dictionary"),
                  "weights": (5, 1, 1, 1, 1), "tokens": (150, 350)},
        "names": {"tasks": "kinds", "kinds": (1, 2), "sentences": None, "tokens": (120, 300)},
        "crowds": {"tasks": "kinds", "kinds": (1, 3), "open_values": None},
        "crowds-long": {"tasks": "kinds", "kinds": (1, 4), "values": None, "open_values": None},
        "starts": {"tasks": "kinds", "kinds": (1, 4), "open_values": None, "tokens": (80, 160)},
        "text": {**every, "weights": None},
        "middle": every,
        "long": every,
    }  # fmt: skip
    return {name: {**options, **changes.get(name, {})} for name, options in files.items()}


class Evidence(Chain):
    """The commands of the evidence, in their order."""

    def __init__(self, settings: Settings):
        models = settings.out / f"{settings.family}-{settings.size}{settings.mark}"
        if settings.base_seed:
            models = models.with_name(f"{models.name}-base{settings.base_seed}")
        super().__init__(settings.python, settings.out / f"data{settings.mark}", models)
        self.settings, self.scale = settings, settings.scale

    def run(self) -> int:
        """All of it; the exit code."""
        try:
            self._make_base()
        except subprocess.CalledProcessError as error:
            print(f"evidence.py: failed: {' '.join(error.cmd)}", file=sys.stderr)
            return 1
        finally:
            self.end_data()
        settings = self.settings
        first = [name for name in settings.branches if name in MAIN]
        waiting = [f"{name}-s{seed}" for seed in settings.seeds for name in first]
        others = [name for name in settings.branches if name not in MAIN]
        waiting += [f"{name}-s{seed}" for name in others for seed in settings.seeds[:1]]
        if failed := self.on_gpus(waiting, settings.gpus, settings.jobs, self._branch):
            print(f"evidence.py: failed; see {' '.join(map(str, failed))}", file=sys.stderr)
            return 1
        self.say(f"{self.models}: weights in kept/, results in asked-test/*/report.md")
        return 0

    def _make_base(self) -> None:
        settings = self.settings
        tokenizer = settings.tokenizer
        if not (tokenizer / "tokenizer.json").is_file():
            self.say("tokenizer")
            given: Options = {"books": settings.books, "classes": settings.classes or None}
            given |= {"output": tokenizer, "tokenizer_only": True, "overwrite": True}
            given |= self.scale.tokenizer
            if settings.is_open:
                given |= {"books_alone": True, "word_weight": None, "classes": None}
            self.python("-m", "lab.planted.make_base", *words(given))
        files = list(data_files(settings).items())
        for name, options in files[:2]:
            self.write(name, options)
        self.wait_for_data()
        for name, options in files[2:]:  # while the base begins
            self.write(name, options)
        if not (self.models / "base" / "model.safetensors").is_file():
            self.say("base")
            given = {"family": settings.family, "tokenizer": tokenizer, "overwrite": True}
            given |= {"output": self.models / "base", "seed": settings.base_seed}
            shape = self.scale.shape or {"size": settings.size}
            self.python("-m", "lab.planted.make_base", *words(given | shape))
        previous = "base"
        for stage, data, options in base_stages(self.scale):
            if stage == "mixed":
                self._warn_if_names_failed()
                self.wait_for_data()
            given = {"method": "mamba", "document_loss": 0.3, "seed": settings.base_seed or None}
            given |= {"max_steps": self.scale.steps[stage], **options}
            self.train(f"base-{stage}", previous, data, given)
            previous = f"base-{stage}"

    def _warn_if_names_failed(self) -> None:
        """A base that tells facts by their kind alone looks well trained, and nothing made from it
        finds a name among many."""
        run = self.models / "base-names"
        stopped = read_json(run / "train.json").get("stopped")
        if self.scale is not SCALES["toy"] and stopped == "all steps done":
            self.say(f"base-names ended below --stop-accuracy; see accuracy in {run}/log.jsonl")

    def _branch(self, run: str, log: TextIO, gpu: str | None) -> None:
        """A branch of a seed: four stages from the base, then the held-out questions."""
        name, _, seed = run.rpartition("-s")
        kept = self.models / "kept" / run
        if (kept / "model.safetensors").is_file():
            self.say(f"{run}: is there", log)
        else:
            previous = "base-wide"
            for number, stage in enumerate(branch_stages(name, self.scale), 1):
                given = {"seed": 10 * int(seed) + number, **stage[2]}
                self.train(f"{run}/{stage[0]}", previous, stage[1], given, log, gpu)
                previous = f"{run}/{stage[0]}"
            self.python("-m", "lab.evidence.keep", self.models / previous, kept, log=log, gpu=gpu)
            for file in (self.models / run).glob("*/model.safetensors"):
                file.unlink()  # logs and settings stay
        tuned = (150, *self.scale.tune_lengths)
        for split, lengths in (("dev", tuned), ("test", self.scale.test_lengths)):
            output = self.models / f"asked-{split}" / run
            record = output / "run.json"
            if read_json(record).get("status") == "finished":
                self.say(f"{output}: is there", log)
                continue
            given = {
                "data": [self.data / f"{split}-{length}.jsonl" for length in lengths],
                "model": kept,
                "output": output,
                "lengths": lengths,
                "conditions": conditions(name),
                "dtype": "float32",
                "plain": kept if name == "plain" else None,
                "resume": True if record.is_file() else None,
            }
            self.python("-m", "remamba", "eval", "planted", *words(given), log=log, gpu=gpu)


if __name__ == "__main__":
    sys.exit(Evidence(Settings.read(os.environ)).run())
