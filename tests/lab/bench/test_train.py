"""The benchmark of a training step runs at a tiny size, and its contenders learn the same row."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "bench_train.py"


def test_a_step_of_each_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "train.json"
    spec = importlib.util.spec_from_file_location("bench_train", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "bench_train", module)
    spec.loader.exec_module(module)
    report = module.main(
        ["--shape", "mamba-tiny", "--tokens", "70", "--answer", "9", "--repeats", "1",
         "--device", "cpu", "--output", str(kept)]
    )  # fmt: skip
    assert json.loads(kept.read_text())["ratios"] == report["ratios"]
    names = [row["name"] for row in report["results"]]
    ours = ["remamba", "plain"]
    assert names == [*ours, *(f"{n}, checkpointed" for n in ours), "transformers with PEFT"]
    assert all(0 < row["min_s"] <= row["median_s"] for row in report["results"])
    assert len(report["ratios"]) == 4
