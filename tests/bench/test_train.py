"""The benchmark of a training step runs at a tiny size, and its contenders learn the same row."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "bench_train.py"


def test_a_step_of_each_contender(tmp_path: Path) -> None:
    kept = tmp_path / "train.json"
    main = runpy.run_path(str(SCRIPT))["main"]
    report = main(
        ["--shape", "mamba-tiny", "--tokens", "70", "--answer", "9", "--repeats", "1",
         "--device", "cpu", "--output", str(kept)]
    )  # fmt: skip
    assert json.loads(kept.read_text())["ratios"] == report["ratios"]
    names = [row["name"] for row in report["results"]]
    ours = ["remamba", "plain"]
    assert names == [*ours, *(f"{n}, checkpointed" for n in ours), "transformers with PEFT"]
    assert all(0 < row["min_s"] <= row["median_s"] for row in report["results"])
    assert len(report["ratios"]) == 4
