"""Building a planted file: the same bytes from any number of processes, and what lies beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lab.planted import build as planted_build
from lab.planted.build import load_tokenizer, make_rows
from lab.planted.suite import Options, Suite, make_tasks
from remamba.cli import main
from remamba.errors import InputError
from remamba.train.batches import StepBatches
from remamba.train.data import read_data
from tests.lab.planted.library import books, source, tokenizer
from tests.tiny import END

Build = Callable[..., int]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("library")
    paths = []
    for number, paragraphs in enumerate(books()):
        paths.append(folder / f"{number}.txt")
        paths[-1].write_text("\n\n".join(paragraphs), encoding="utf-8")
    return paths


@pytest.fixture
def build(library: list[Path], tmp_path: Path) -> Build:
    """`build(name, *arguments)`: the exit code of the command that writes this file."""

    def run(name: str, *arguments: Any) -> int:
        given = ["--books", *library, "--output", tmp_path / name, *arguments]
        return main(["data", "build", "planted", *map(str, given)])

    return run


MIXED = ("--documents", 40, "--tasks", "facts", "count", "--tokens", 200, 400, "--seed", 7)


def test_the_file_does_not_depend_on_the_processes(build: Build, tmp_path: Path) -> None:
    assert build("a.jsonl", *MIXED) == build("b.jsonl", *MIXED, "--workers", 2) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    manifests = [json.loads((tmp_path / f"{name}.manifest.json").read_text()) for name in "ab"]
    assert [manifest.pop("output") for manifest in manifests] == ["a.jsonl", "b.jsonl"]
    assert manifests[0] == manifests[1]


def test_chunks_are_the_rows_in_order() -> None:
    options = Options(tokens=(200, 300), questions=2)
    suite = Suite(source(), options, make_tasks(options))
    whole = "".join(chunk.lines for chunk in make_rows(suite, 10, chunk=3))
    assert whole == "".join(chunk.lines for chunk in make_rows(suite, 10, workers=2, chunk=4))
    rows = [json.loads(line) for line in whole.splitlines()]
    assert rows == [suite.make(number).row for number in range(10)]


def test_the_manifest_tells_what_was_made(
    build: Build, library: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("a.jsonl", *MIXED, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "a.manifest.json").read_text())
    data = (tmp_path / "a.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["inputs"] == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in library
    }
    assert manifest["rows"] == len(rows) == 40
    assert manifest["questions"] == sum(len(row["questions"]) for row in rows)
    assert manifest["options"]["tasks"] == ["facts", "count"]
    assert manifest["options"]["tokens"] == [200, 400]
    for name, told in manifest["tasks"].items():
        mine = [row for row in rows if row["task"] == name]
        tokens = sorted(row["tokens"] for row in mine)
        answers = [tuple(q["answers"]) for row in mine for q in row["questions"]]
        assert told == {
            "rows": len(mine),
            "questions": len(answers),
            "answers": len(set(answers)),
            "commonest_answer": max(map(answers.count, answers)) / len(answers),
            "tokens": {"least": tokens[0], "median": tokens[len(mine) // 2], "most": tokens[-1]},
            "dropped": told["dropped"],
        }
        assert 0 <= told["dropped"] < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.manifest.json"]


def test_a_build_that_fails_leaves_the_old_file(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build("a.jsonl", *MIXED) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_chunk = planted_build._make_chunk

    def cut_off(numbers: range) -> planted_build.Chunk:
        if numbers.start:
            raise KeyboardInterrupt
        return make_chunk(numbers)

    monkeypatch.setattr(planted_build, "_make_chunk", cut_off)
    assert build("a.jsonl", *MIXED, "--overwrite") == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_output_is_not_replaced_unasked(build: Build, tmp_path: Path) -> None:
    given = ("--documents", 2, "--tokens", 100, 200)
    assert build("f.jsonl", *given) == 0
    first = (tmp_path / "f.jsonl").read_bytes()
    assert build("f.jsonl", *given, "--seed", 1) == 2
    assert (tmp_path / "f.jsonl").read_bytes() == first
    assert build("f.jsonl", *given, "--seed", 1, "--overwrite") == 0
    assert (tmp_path / "f.jsonl").read_bytes() != first
    told = json.loads((tmp_path / "f.manifest.json").read_text())
    assert told["options"]["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--books", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--tokens", "900", "100"], "LO <= HI"),
        (["--tokens", "99999", "99999"], "too short"),
        (["--documents", "0"], "give 1 or more"),
        (["--workers", "0"], "give 1 or more"),
        (["--kinds", "3", "2"], "1 <= LO <= HI"),
        (["--values", "3", "2"], "--values 3 2: give 1 <= LO <= HI"),
        (["--tasks", "facts", "count", "--weights", "1"], "one for each of 2 tasks"),
        (["--tasks", "few-shot"], "--classes"),
        (["--tokenizer", "nowhere"], "there is no tokenizer.json"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    build: Build,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert build("f.jsonl", "--documents", 1, *arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("remamba: ") and words in last
    assert not (tmp_path / "f.jsonl").exists()


def test_training_reads_the_evidence_where_it_stands(
    build: Build, tmp_path: Path, classes: Path
) -> None:
    """Each span's targets lie in the tokens of its text."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token=END, pad_token=END)
    fast.save_pretrained(tmp_path)
    given = ("--tokens", 300, 400, "--questions", 3, "--tokenizer", tmp_path)
    tasks = ("facts", "two-hop", "many-facts", "retrieval", "count")
    assert build("f.jsonl", "--documents", 20, *given, "--tasks", *tasks) == 0
    path = tmp_path / "f.jsonl"
    options: dict[str, Any] = {"vocab_size": len(fast), "max_length": 500}
    data = read_data([str(path)], fast, **options, score_target="evidence")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    batches = StepBatches(
        data, steps=20, batch_size=1, questions=3, seed=0, score_target="evidence"
    )
    seen = set()
    for step in range(20):
        (item,) = batches.items(step).tolist()
        row = rows[item]
        seen.add(item)
        ends = [stop for _, stop in tokenizer().encode(row["document"]).offsets]
        targets = batches[step]["score_targets"].numpy()
        if targets.ndim == 2:
            targets = targets[..., None]
        for question, found in zip(batches.sample_questions(step)[0], targets, strict=True):
            asked = row["questions"][question - data.first_question[item]]
            for span, (start, stop) in enumerate(asked["evidence"]):
                places = np.flatnonzero(found[:, span])
                assert len(places)
                assert all(start < ends[place] <= stop for place in places)
            assert not found[:, len(asked["evidence"]) :].any()
    assert len(seen) == 20


def test_a_tokenizer_is_a_directory_with_its_file(tmp_path: Path) -> None:
    assert load_tokenizer(None) is None
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("the").ids == tokenizer().encode("the").ids
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path / "none")
