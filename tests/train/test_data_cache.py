"""What comes from the cache of training data is what the files say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remamba.errors import InputError
from remamba.train import data_cache
from remamba.train.batches import StepBatches
from remamba.train.config import TrainArgs, check_resumable
from remamba.train.data import TokenData, read_data
from remamba.train.data_cache import read_cached
from tests.test_layers import imported
from tests.train.toy import make_tokenizer, save_base, write_documents, write_rows

TOKENIZER = make_tokenizer()
OPTIONS: dict[str, Any] = {"vocab_size": len(TOKENIZER), "max_length": 100}
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "cache"


def read(folder: Path, *paths: str, tokenizer: Any = TOKENIZER, **options: Any) -> TokenData:
    return read_cached(str(folder), paths, tokenizer, **{**OPTIONS, **options})


def broken_read(*_: Any, **__: Any) -> TokenData:
    raise AssertionError("the files are read")


def arrays_of(value: Any, name: str = "data") -> dict[str, Any]:
    """Every array, text and number inside a TokenData, by its path."""
    if isinstance(value, np.ndarray | str | int | None):
        return {name: value}
    if isinstance(value, list | tuple):
        parts: Any = enumerate(value)
    else:
        parts = (value if isinstance(value, dict) else vars(value)).items()
    found: dict[str, Any] = {f"{name} is": type(value)}
    for part, inner in parts:
        found |= arrays_of(inner, f"{name}.{part}")
    return found


def assert_same(ours: TokenData, theirs: TokenData) -> None:
    found, expected = arrays_of(ours), arrays_of(theirs)
    assert list(found) == list(expected) and len(found) > 20
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
            assert np.array_equal(found[name], value), name
        else:
            assert found[name] == value, name


def assert_same_batches(ours: TokenData, theirs: TokenData, score_target: str | None) -> None:
    for shared in (True, False):
        pair = [
            StepBatches(data, steps=16, batch_size=4, questions=2, seed=0, shared=shared,
                        score_target=score_target)
            for data in (ours, theirs)
        ]  # fmt: skip
        for step in range(16):
            batch, expected = pair[0][step], pair[1][step]
            assert list(batch) == list(expected)
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert batch[name].dtype == value.dtype and batch[name].equal(value), name
            assert pair[0].where(step) == pair[1].where(step)


def write_all_kinds(folder: Path) -> list[str]:
    """Documents with evidence; prompts and texts, and a prompt that is too long."""
    rows: list[Any] = [
        {"prompt": " key1 is", "response": " val1"},
        {"text": " w1" * 120},
        {"document": " key2 val2. w1", "question": " key2", "response": " val2",
         "evidence": [" key2 val2", [0, 5]], "answer": ["val2", "Paris"]},
        {"prompt": " w1" * 120, "response": " val1"},
        {"text": " the key4"},
    ]  # fmt: skip
    return [write_documents(folder / "d.jsonl"), write_rows(folder / "m.jsonl", rows)]


@pytest.mark.parametrize("score_target", [None, "answer", "evidence"])
def test_data_from_the_cache_are_those_of_the_files(
    tmp_path: Path,
    folder: Path,
    score_target: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_all_kinds(tmp_path)
    options = {"score_target": score_target, "long_rows": "skip"}
    expected = read_data(paths, TOKENIZER, **OPTIONS, **options)
    assert_same(read(folder, *paths, **options), expected)
    (place,) = folder.iterdir()

    monkeypatch.setattr(data_cache, "read_data", broken_read)
    data = read(folder, *paths, **options)
    assert capsys.readouterr().err.splitlines() == [f"data from the cache: {place}"]
    assert_same(data, expected)
    assert data.summary() == expected.summary() and "1 longer rows skipped" in data.summary()
    assert_same_batches(data, expected, score_target)


def test_paths_are_the_callers_own(tmp_path: Path, folder: Path) -> None:
    first = write_all_kinds(tmp_path)
    read(folder, *first, long_rows="skip")
    (tmp_path / "moved").mkdir()
    second = [shutil.copy(path, tmp_path / "moved") for path in first]
    data = read(folder, *second, long_rows="skip")
    assert len(list(folder.iterdir())) == 1
    assert_same(data, read_data(second, TOKENIZER, **OPTIONS, long_rows="skip"))
    assert data.where(40) == f"{second[1]}:1"
    twice = read(folder, first[0], first[0])
    assert_same(twice, read_data([first[0]] * 2, TOKENIZER, **OPTIONS))
    moved = read(folder, first[0], second[0])
    assert moved.where(40) == f"{second[0]}:1" and list(moved.hashes) == [first[0], second[0]]
    assert len(list(folder.iterdir())) == 2


def test_all_that_changes_the_data_changes_the_file(tmp_path: Path, folder: Path) -> None:
    one, two = write_documents(tmp_path / "1.jsonl"), write_documents(tmp_path / "2.jsonl", seed=1)
    chat, other = make_tokenizer(), make_tokenizer()
    chat.chat_template = TEMPLATE
    other.add_tokens(["zebra"])
    ended = make_tokenizer()
    ended.eos_token = "a"
    shutil.copy(one, tmp_path / "1.json")
    reads: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((one,), {}),
        ((two,), {}),
        ((one, two), {}),
        ((two, one), {}),
        ((str(tmp_path / "1.json"),), {}),
        *(
            ((one,), changes)
            for changes in (
                {"max_length": 101},
                {"vocab_size": 2 * len(TOKENIZER)},
                {"long_rows": "cut"},
                {"score_target": "answer"},
                {"score_target": "evidence"},
                {"tokenizer": chat},
                {"tokenizer": ended},
                {"tokenizer": other, "vocab_size": len(other)},
                {"tokenizer": other, "vocab_size": 2 * len(TOKENIZER)},
            )
        ),
    ]
    for count, (paths, changes) in enumerate(reads, 1):
        read(folder, *paths, **changes)
        assert len(list(folder.iterdir())) == count, changes
    for paths, changes in reads:
        read(folder, *paths, **changes)
    same = make_tokenizer()
    same.backend_tokenizer.enable_truncation(5)  # Encoder takes it off
    read(folder, one, tokenizer=same)
    assert len(list(folder.iterdir())) == len(reads)
    with Path(one).open("a") as file:
        file.write('{"text": " w1"}\n')
    assert read(folder, one).num_items == 41
    assert len(list(folder.iterdir())) == len(reads) + 1


def test_other_code_reads_anew(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_documents(tmp_path / "d.jsonl")
    read(folder, path)
    monkeypatch.setattr(data_cache, "_code", lambda: ["another"])
    read(folder, path)
    assert len(list(folder.iterdir())) == 2


def test_all_code_that_reads_is_known() -> None:
    """READING names all that the cache imports but what only loads models, checks or tells."""
    package = Path(data_cache.__file__).parent.parent
    others = {"compression_config", "configuration_remamba", "errors", "files", "plugins"}
    others |= {"pretrained", "provenance", "train/progress"}
    found, waiting = set(), ["train/data_cache"]
    while waiting:
        name = waiting.pop()
        if name not in found | others:
            found.add(name)
            names = {path for path in imported(package / f"{name}.py") if path[0] == "remamba"}
            waiting += ["/".join(path[1:]) for path in names]
    assert found == set(data_cache.READING)


def cut(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-50])


def flip(place: Path) -> None:
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)


def empty(place: Path) -> None:
    place.write_bytes(b"")


def other_arrays(place: Path) -> None:
    np.savez(place, kinds=np.zeros(3))


def one_array(place: Path) -> None:
    with place.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(place: Path) -> None:
    np.savez(place, about=np.array([{}], dtype=object))


@pytest.mark.parametrize("spoil", [cut, flip, empty, other_arrays, one_array, pickled])
def test_a_file_that_cannot_be_used_is_made_anew(
    tmp_path: Path, folder: Path, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_documents(tmp_path / "d.jsonl")
    expected = read(folder, path, score_target="evidence")
    (place,) = folder.iterdir()
    spoil(place)
    capsys.readouterr()
    assert_same(read(folder, path, score_target="evidence"), expected)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"data cache: {place} cannot be used (") and "anew" in said
    assert_same(read(folder, path, score_target="evidence"), expected)
    assert capsys.readouterr().err == f"data from the cache: {place}\n"
    assert list(folder.iterdir()) == [place]


def test_writers_of_one_file_do_no_harm(tmp_path: Path, folder: Path) -> None:
    path = write_documents(tmp_path / "d.jsonl")
    expected = read(folder, path)
    (place,) = folder.iterdir()
    writers = [threading.Thread(target=data_cache._save, args=(place, expected)) for _ in range(8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert_same(read(folder, path), expected)
    assert list(folder.iterdir()) == [place]


def test_a_disk_that_is_full_stops_nothing(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    path = write_documents(tmp_path / "d.jsonl")
    assert read(folder, path).num_items == 40
    assert "npz cannot be written: the disk is full" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_documents(tmp_path / "d.jsonl")

    def changed(*args: Any, **options: Any) -> TokenData:
        write_documents(tmp_path / "d.jsonl", seed=1)
        return read_data(*args, **options)

    monkeypatch.setattr(data_cache, "read_data", changed)
    read(folder, path)
    assert not list(folder.iterdir())


def test_errors_are_those_of_a_read_without_a_cache(tmp_path: Path, folder: Path) -> None:
    good = write_documents(tmp_path / "d.jsonl")
    bad = write_rows(tmp_path / "bad.jsonl", [3])
    no_end = make_tokenizer()
    no_end.eos_token = None
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([good, str(tmp_path / "none.jsonl")], {}),
        ([bad, str(tmp_path / "none.jsonl")], {}),
        ([str(tmp_path / "empty")], {}),
        ([good, bad], {}),
        ([good], {"max_length": 3}),
        ([good], {"max_length": 9, "long_rows": "skip"}),
        ([good], {"vocab_size": 10}),
        ([good], {"tokenizer": no_end}),
    ]
    for paths, changes in cases:
        options = {"tokenizer": TOKENIZER, **OPTIONS, **changes}
        with pytest.raises(InputError) as plain:
            read_data(paths, **options)
        with pytest.raises(InputError) as cached:
            read(folder, *paths, **changes)
        assert str(cached.value) == str(plain.value)
    assert not list(folder.iterdir())
    with pytest.raises(InputError, match=r"--data-cache .*d\.jsonl cannot be written: a file has"):
        read(Path(good), good)
    with pytest.raises(InputError, match="--data-cache is empty"):
        TrainArgs(base="b", data=(good,), output="o", data_cache="")


def test_training_with_the_cache_changes_no_weight(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    from remamba.train.run import train

    plain = TrainArgs(
        base=save_base(tmp_path / "base"), data=(write_documents(tmp_path / "d.jsonl", count=24),),
        output=str(tmp_path / "plain"), device="cpu", max_steps=2, batch_size=4, save_steps=0,
        questions_per_document=2, warmup_steps=1, keep_ratio=(0.2, 0.8), score_loss=0.5,
        score_target="evidence", check_gradients=False,
    )  # fmt: skip
    train(plain)
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    for name in ("writes", "reads"):
        capsys.readouterr()
        args = dataclasses.replace(plain, output=str(tmp_path / name), data_cache=str(folder))
        train(args)
        assert ("from the cache" in capsys.readouterr().err) == (name == "reads")
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
        records = [json.loads((tmp_path / n / "train.json").read_text()) for n in ("plain", name)]
        assert records[0]["data"] == records[1]["data"]
        check_resumable(args, {**records[0]["args"], "output": args.output})
