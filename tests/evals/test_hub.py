"""The benchmarks' files from a hub that the test stands in for."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from remamba.errors import InputError
from remamba.evals import leval, longbench
from remamba.evals.hub import fetch
from tests.evals.toy import leval_folder, longbench_folder
from tests.tiny import Run


def archive(folder: Path, *datasets: str) -> Path:
    """LongBench's data.zip."""
    longbench_folder(folder / "data", *datasets)
    with zipfile.ZipFile(folder / "data.zip", "w") as packed:
        for file in (folder / "data").iterdir():
            packed.write(file, f"data/{file.name}")
    return folder / "data.zip"


def test_longbench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = archive(tmp_path, *longbench.DATASETS)

    def download(name: str, member: str, repo_type: str) -> str:
        assert (name, member, repo_type) == ("THUDM/LongBench", "data.zip", "dataset")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = fetch("longbench-e")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{dataset}_e.jsonl" for dataset in longbench.DATASETS
    )
    assert fetch("longbench-e") == folder
    plain = (tmp_path / "data" / "qasper_e.jsonl").read_bytes()
    assert (folder / "qasper_e.jsonl").read_bytes() == plain


def test_leval(monkeypatch: pytest.MonkeyPatch, remamba: Run, tmp_path: Path) -> None:
    leval_folder(tmp_path / "snapshot" / "LEval" / "Exam")

    def download(name: str, **options: Any) -> str:
        assert name == "L4NLP/LEval" and options["repo_type"] == "dataset"
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setitem(leval.NEW_TOKENS, "authors", 2)
    words = ("eval", "leval", "--data", "hub", "--datasets", "tpo", "--max-length", 660)
    found = remamba(*words, "--output", tmp_path / "run", "--json")
    assert found["datasets"]["tpo"]["n"] == 2


def test_other_archives_and_no_network(
    monkeypatch: pytest.MonkeyPatch, refused: Run, tmp_path: Path
) -> None:
    file = archive(tmp_path, "qasper")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    with pytest.raises(InputError, match="holds no multifieldqa_en_e"):
        fetch("longbench-e")
    monkeypatch.undo()
    said = refused("eval", "leval", "--data", "hub", "--output", tmp_path / "run")
    assert "--data hub: L4NLP/LEval cannot be fetched" in said
    assert not (tmp_path / "run").exists()
