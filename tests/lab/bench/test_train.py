"""The benchmark of a training step runs at a tiny size, and its contenders learn the same row."""

from __future__ import annotations

import json
from pathlib import Path

from lab.bench import train


def test_a_step_of_each_contender(tmp_path: Path) -> None:
    kept = tmp_path / "train.json"
    report = train.main(
        ["--shape", "mamba-tiny", "--tokens", "70", "--answer", "9", "--repeats", "1",
         "--device", "cpu", "--output", str(kept)]
    )  # fmt: skip
    assert json.loads(kept.read_text())["ratios"] == report["ratios"]
    names = [row["name"] for row in report["results"]]
    ours = ["remamba", "plain"]
    assert names == [*ours, *(f"{n}, checkpointed" for n in ours), "transformers with PEFT"]
    assert all(0 < row["min_s"] <= row["median_s"] for row in report["results"])
    assert len(report["ratios"]) == 4
