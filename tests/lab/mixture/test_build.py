"""The paper's mixture: which rows it takes, how it cuts them, and builds that are cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.mixture import build as mixture_build
from lab.mixture.mixture import (
    LONGALPACA,
    OPENORCA,
    Filter,
    Instruction,
    Recipe,
    instruction,
)
from remamba.cli import main
from remamba.errors import InputError
from remamba.json_lines import Row
from remamba.train import encode
from remamba.train.data import read_data
from remamba.train.encode import Encoder
from tests.tiny import byte_level_bpe
from tests.train.toy import write_rows

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

LETTERS = "abcdefghi"
TOKENIZER = byte_level_bpe([f" {letter}" for letter in LETTERS] * 9, 400, "<|end|>")
ENCODER = Encoder(TOKENIZER, len(TOKENIZER))
SIZES = {"max_length": 30, "keep_first": 5, "long_prompt": 8, "normal_rows": 6, "normal_from": 20}
RECIPE = Recipe(**SIZES)


def words(count: int, first: int = 0) -> str:
    """A text of exactly so many tokens, no two neighbours alike."""
    return "".join(f" {LETTERS[(first + i) % 9]}" for i in range(count))


def tokens(text: str) -> int:
    return len(ENCODER.encode([text])[0])


def filtered(prompt: str, response: str, number: int = 0, source: Any = OPENORCA) -> list[Any]:
    chosen = Filter(ENCODER, RECIPE)
    return list(chosen([Instruction(prompt, response, number, "f:1")], source))


def test_the_toy_counts_as_the_tests_do() -> None:
    assert [tokens(words(count)) for count in (1, 2, 40)] == [1, 2, 40]


@pytest.mark.parametrize(
    "prompt, response, number, source, sets",
    [
        (8, 3, 0, OPENORCA, ("normal",)),
        (9, 3, 0, OPENORCA, ("long", "normal")),
        (9, 3, 0, LONGALPACA, ("long",)),
        (8, 3, 0, LONGALPACA, None),
        (8, 3, 20, OPENORCA, None),  # behind OpenOrca's first rows
        (9, 3, 20, OPENORCA, ("long",)),
        (26, 3, 0, OPENORCA, ("long",)),  # 30 with the end-of-text: not below the limit
        (25, 3, 0, OPENORCA, ("long", "normal")),
        (2, 28, 0, OPENORCA, None),  # the response alone is nearly all
        (40, 40, 0, OPENORCA, None),
    ],
)
def test_rows_belong_to_the_sets_of_the_released_code(
    prompt: int, response: int, number: int, source: Any, sets: tuple[str, ...] | None
) -> None:
    found = filtered(words(prompt), words(response), number, source)
    assert [row.sets for row in found] == ([] if sets is None else [sets])
    assert all(row.prompt == words(prompt) and not row.is_cut for row in found)


@pytest.mark.parametrize("prompt, response", [(40, 3), (200, 10), (31, 24)])
def test_long_prompts_are_cut_behind_their_first_tokens(prompt: int, response: int) -> None:
    (row,) = filtered(words(prompt), words(response)) or [None]
    room = 30 - response - 1
    if room <= RECIPE.keep_first:
        assert row is None
        return
    assert row.tokens <= 30 and row.is_cut
    assert row.prompt_tokens == tokens(row.prompt) == room
    assert row.prompt == words(5) + words(room - 5, prompt - room + 5)
    assert "normal" not in row.sets


def test_a_cut_that_makes_other_tokens_at_its_seam_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the bytes of a character stand on both sides of the seam
    text = words(4) + "é" * 40 + words(10)
    (row,) = filtered(text, words(3))
    assert row.is_cut and tokens(row.prompt) == row.prompt_tokens <= 26
    assert row.prompt.endswith(words(10)) and "\ufffd" not in row.prompt


def test_encoding_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [words(n) for n in (1, 30, 2, 3, 0, 9)]
    whole = ENCODER.encode(texts)
    monkeypatch.setattr(encode, "AT_ONCE", 20)
    assert [a.tolist() for a in ENCODER.encode(texts)] == [a.tolist() for a in whole]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"question": "a"}, "'response' is missing; is this Open-Orca/OpenOrca"),
        ({"question": " \n", "response": "a"}, "'question' is empty"),
        ({"question": 3, "response": "a"}, "'question' is a number"),
        ({"question": "a", "response": "\ud800"}, "'response' holds half"),
    ],
)
def test_bad_rows_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"f.jsonl:3: {said}"):
        instruction(Row(values, "f.jsonl:3"), OPENORCA, 0)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """LongAlpaca as one array, OpenOrca as two tables."""
    long = [{"instruction": words(6 + i), "input": "x", "output": words(2, i)} for i in range(9)]
    orca = [
        {"system_prompt": "x", "question": words(3 + i % 12, i), "response": words(1 + i % 3)}
        for i in range(40)
    ]
    (tmp_path / "long.json").write_text(json.dumps(long))
    for name, rows in (("a", orca[:15]), ("b", orca[15:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    return {"long": str(tmp_path / "long.json"), "a": str(tmp_path / "a.parquet"),
            "b": str(tmp_path / "b.parquet"), "tokenizer": str(tmp_path / "tokenizer")}  # fmt: skip


@pytest.fixture
def command(sources: dict[str, str], tmp_path: Path) -> Callable[..., list[str]]:
    def make(*more: str, output: str = "out") -> list[str]:
        sizes = [w for k, v in SIZES.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        return [
            "data", "build", "openorca-longalpaca", "--output", str(tmp_path / output),
            "--longalpaca", sources["long"], "--openorca", sources["a"], sources["b"],
            "--tokenizer", sources["tokenizer"], *sizes, *more,
        ]  # fmt: skip

    return make


def rows_of(folder: Path) -> list[dict[str, Any]]:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    return [row for s in shards for row in parquet.read_table(folder / s["name"]).to_pylist()]


def test_a_build_is_sharded_reported_and_trained_on(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mixture_build, "BLOCK_ROWS", 7)
    monkeypatch.setattr(mixture_build, "SHARD_ROWS", 8)
    assert main(command("--json")) == 0
    manifest = json.loads(capsys.readouterr().out)
    rows = rows_of(tmp_path / "out")
    long = [row for row in rows if row["set"] == "long"]
    normal = [row for row in rows if row["set"] == "normal"]
    # LongAlpaca's prompts of 9 to 14 tokens; of OpenOrca's 3 to 14 every twelve
    assert sum(row["source"] == "longalpaca" for row in long) == 6
    expected = [i for i in range(40) if 3 + i % 12 > 8]
    found = sorted(row["source_row"] for row in long if row["source"] == "openorca")
    assert found == expected
    assert len(normal) == 6
    assert all(row["source_row"] < 20 and row["source"] == "openorca" for row in normal)
    assert manifest["rows"] == len(rows) == sum(s["rows"] for s in manifest["shards"])
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 8, 8, 6]
    assert {row["set"] for row in rows[:8]} == {"long", "normal"}  # shuffled
    counts = manifest["sources"]["openorca"]
    assert counts["read"] == 40
    assert counts["read"] == counts["too short for the long set"] + len({*range(20), *expected})
    assert counts["fits the normal set but was not drawn"] == 14
    lengths = manifest["lengths"]["long"]
    assert lengths["longest"] == max(r["prompt_tokens"] + r["response_tokens"] + 1 for r in long)
    assert "| read | 9 | 40 |" in (tmp_path / "out" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "build.json", *(shard["name"] for shard in manifest["shards"]), "manifest.json",
        "report.md",
    ]  # fmt: skip
    data = read_data([str(tmp_path / "out")], TOKENIZER, vocab_size=len(TOKENIZER), max_length=30)
    assert data.num_items == len(rows)
    assert data.lengths().tolist() == [r["prompt_tokens"] + r["response_tokens"] + 1 for r in rows]


def test_a_build_that_was_cut_off_goes_on(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture_build, "BLOCK_ROWS", 7)
    assert main(command(output="whole")) == 0
    made: list[Path] = []
    make_part = mixture_build.Mixture._make_part

    def cut_off(self: Any, path: Path, *rest: Any) -> None:
        if len(made) == 4:
            path.with_name(f".{path.name}.0.part").write_bytes(b"half a part")
            raise KeyboardInterrupt
        made.append(path)
        make_part(self, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(mixture_build.Mixture, "_make_part", cut_off)
        assert main(command(output="parts")) == 130
    assert not (tmp_path / "parts" / "manifest.json").exists()
    assert main(command(output="parts")) == 2
    assert main(command("--seed", "7", "--resume", output="parts")) == 2
    before = {path: path.stat().st_mtime_ns for path in made}
    remade: list[Path] = []

    def watched(self: Any, path: Path, *rest: Any) -> None:
        assert {p: p.stat().st_mtime_ns for p in made} == before
        remade.append(path)
        make_part(self, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(mixture_build.Mixture, "_make_part", watched)
        assert main(command("--resume", output="parts")) == 0
    assert len(remade) == 8 - 4 and not set(remade) & set(made)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert main(command("--resume", output="parts")) == 0  # complete: nothing is done
    assert len(remade) == 4 and not (tmp_path / "parts" / "parts").exists()
    assert main(command("--overwrite", "--seed", "7", output="parts")) == 0
    assert rows_of(tmp_path / "parts") != rows_of(tmp_path / "whole")


def test_bad_rows_stop_a_build_or_are_counted(
    command: Callable[..., list[str]],
    sources: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"question": words(9), "response": words(2)}] * 3
    path = write_rows(tmp_path / "orca.jsonl", [*rows, {"question": "", "response": "a"}, *rows])
    argv = command()
    at = argv.index("--openorca")
    argv[at + 1 : at + 3] = [path]
    assert main(argv) == 2
    assert f"{path}:4: 'question' is empty" in capsys.readouterr().err
    assert main([*argv, "--skip-bad-rows", "--overwrite"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"]["openorca"]["bad"] == 1
    assert manifest["sources"]["openorca"]["read"] == 7
    assert "orca.jsonl:4: 'question' is empty" in capsys.readouterr().out


def test_without_the_hub_the_files_are_asked_for(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command()
    at = argv.index("--openorca")
    del argv[at : at + 3]
    assert main(argv) == 2
    assert "give its files with --openorca" in capsys.readouterr().err
