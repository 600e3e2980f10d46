"""Needles stand where they should, are found or not, and kept or not."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest

from remamba.evals.needles import draw_needles, evidence_kept, make_items
from tests.tiny import PAPER, WHOLE, Run, save_tiny, tiny_tokenizer

PROSE = [" ".join(f"Sentence {i} tells of Tom Hill and of Paris." for i in range(400))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and prose in three kinds of files."""
    path = tmp_path_factory.mktemp("needles")
    for name, settings in (("paper", PAPER), ("whole", WHOLE)):
        save_tiny(path / name, compression=settings, eos_token_id=0)
    (path / "prose").mkdir()
    (path / "prose" / "a.txt").write_text(PROSE[0])
    row = json.dumps({"text": PROSE[0].replace("Tom", "Helen")}).encode()
    (path / "prose" / "b.jsonl.xz").write_bytes(lzma.compress(row))
    (path / "prose" / "cover.png").write_bytes(b"\x89PNG")
    return path


def ask(folder: Path, model: str, output: Path, *more: object) -> list[object]:
    found: list[object] = ["eval", "needle", "--data", folder / "prose", "--output", output]
    return [*found, "--model", folder / model, "--json", *more]


@pytest.mark.parametrize("needles", [1, 4])
def test_needles_stand_at_their_depth(needles: int) -> None:
    items = make_items(
        PROSE, tiny_tokenizer(), lengths=(300, 600), depths=(0, 0.5, 1), per_cell=2, needles=needles
    )
    assert len(items) == 12 and len({item.id for item in items}) == 12
    for item in items:
        ids = tiny_tokenizer()(item.prompt.document)["input_ids"]
        assert item.length is not None and 0.8 * item.length <= len(ids) <= item.length + 4
        start, stop = item.details["evidence"]
        said = tiny_tokenizer().decode(ids[start:stop])
        assert item.answers[0] in said and said.strip() in item.prompt.document
        middle = (start + stop) / 2 / len(ids)
        assert abs(middle - item.details["depth"]) < 0.15
        assert item.prompt.document.count(item.answers[0]) == 1
        assert item.prompt.after == f"\n\nQuestion: {item.question}\nAnswer:"


def test_same_seed_same_needles() -> None:
    options: dict[str, Any] = {"lengths": (300,), "depths": (0.5,), "per_cell": 3}
    first, again, other = (
        [item.prompt.text for item in make_items(PROSE, tiny_tokenizer(), **options, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again and first != other and len(set(first)) == 3


def test_only_the_needle_asked_for_has_its_value() -> None:
    for seed in range(20):
        found = draw_needles(random.Random(seed), 5)
        assert sum(needle.value == found[0].value for needle in found) == 1
        assert len({needle.question for needle in found}) == 5


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([[3, 0.5], [9, 0.1]], False),
        ([[4, 0.5]], True),
        ([[6, 0.5]], True),
        ([[7, 0.5]], False),
        ([], False),
        (None, None),
    ],
)
def test_evidence_kept(kept: list[list[float]] | None, expected: bool | None) -> None:
    assert evidence_kept({"kept": kept, "evidence": [4, 7]}) is expected
    assert evidence_kept({"kept": kept}) is None


@pytest.mark.parametrize("model", ["paper", "whole"])
def test_run(model: str, folder: Path, remamba: Run, tmp_path: Path) -> None:
    more = ("--lengths", 200, 400, "--depths", 0, 1, "--per-cell", 1, "--needles", 2)
    found = remamba(*ask(folder, model, tmp_path / "run", *more))
    entry = found["datasets"]["needle"]
    assert entry["n"] == 4 and entry["evidence_kept"] is not None
    assert [(cell["length"], cell["depth"]) for cell in entry["cells"]] == [
        (200, 0.0),
        (200, 1.0),
        (400, 0.0),
        (400, 1.0),
    ]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Was a token of the needle kept?" in report and "2 facts in prose" in report
    assert (tmp_path / "run" / "report.png").read_bytes()[:4] == b"\x89PNG"
    again = remamba("eval", "score", "--task", "needle", "--output", tmp_path / "run", "--json")
    assert again == found
    assert remamba(*ask(folder, model, tmp_path / "run", *more, "--resume")) == found


def test_scores_and_cells(write: Any, remamba: Run, refused: Run, tmp_path: Path) -> None:
    def row(pred: str, depth: Any, **more: Any) -> dict[str, Any]:
        return {"pred": pred, "answers": ["red"], "length": 100, "depth": depth, **more}

    file = write(
        tmp_path / "predictions" / "needle.jsonl",
        row(" Red.\nblue", 0, kept=[[5, 1.0]], evidence=[4, 6]),
        row("blue\nred", 0, kept=[[6, 1.0]], evidence=[4, 6]),
        row("reddish", 0),
        row("a red coat", 1),
    )
    words = ("eval", "score", "--task", "needle", "--output", tmp_path)
    entry = remamba(*words, "--json")["datasets"]["needle"]
    assert entry["score"] == pytest.approx((100 / 3 + 100) / 2)
    assert entry["evidence_kept"] == 50.0
    assert [cell["evidence_kept"] for cell in entry["cells"]] == [50.0, None]
    assert "| 0     |      33.33 |" in remamba(*words)
    write(file, row("red", None))
    assert ":1: 'depth' is None" in refused(*words)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--depths", 1.5), "--depths 1.5 is outside"),
        (("--lengths", 30), "--lengths 30 leaves"),
        (("--lengths", 300, 300), "--lengths needs at least one value, each only once"),
        (("--per-cell", 0), "--per-cell 0 is outside"),
        (("--needles", 101), "--needles 101 is outside"),
    ],
)
def test_options_that_cannot_be_used(
    more: tuple[object, ...], expected: str, folder: Path, refused: Run, tmp_path: Path
) -> None:
    assert expected in refused(*ask(folder, "paper", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_folders_without_prose(folder: Path, refused: Run, tmp_path: Path) -> None:
    words = ask(folder, "paper", tmp_path / "run")
    words[words.index("--data") + 1] = tmp_path
    assert "holds no prose" in refused(*words)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert "latin.txt: not UTF-8" in refused(*words)
