"""curves.png: drawn at the end of a run, from its log; a run without matplotlib says so."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remamba.train.config import TrainArgs
from remamba.train.curves import draw_curves
from remamba.train.progress import peak_memory
from remamba.train.run import train
from tests.train.toy import save_base, write_documents

pytest.importorskip("matplotlib")


def pixels(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("steps", [1, 30])
def test_each_kind_of_value_gets_a_panel(tmp_path: Path, steps: int) -> None:
    line = {"loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 100, "grad_norm": 1.0}
    log, output = tmp_path / "log.jsonl", tmp_path / "c.png"

    def draw(**more: float) -> Any:
        lines = [{"step": step, **line, **more} for step in range(1, steps + 1)]
        log.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        draw_curves(log, output, "a run")
        return pixels(output)

    plain = draw()
    assert (plain[..., :3] < 0.5).any()  # something is drawn
    # the two more panels are a third row
    assert draw(accuracy=0.5, keep_ratio=0.1).shape[0] > plain.shape[0]


def test_a_run_draws_its_curves_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args: dict[str, Any] = {
        "base": save_base(tmp_path / "base"), "data": (write_documents(tmp_path / "d.jsonl"),),
        "device": "cpu", "max_steps": 2, "batch_size": 2, "save_steps": 0, "logging_steps": 1,
        "check_gradients": False,
    }  # fmt: skip
    summary = train(TrainArgs(output=str(tmp_path / "run"), **args))
    assert pixels(tmp_path / "run" / "curves.png").shape[1] > 800
    assert summary["tokens_per_second"] > 0 and summary["memory_gib"] > 0.05
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert line["memory_gib"] <= peak_memory(torch.device("cpu"))
    assert "GiB  0:00 left" in capsys.readouterr().err

    plain = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        train(TrainArgs(output=str(tmp_path / "other"), **args))
    assert not (tmp_path / "other" / "curves.png").exists()
    assert "no curves.png: matplotlib is not installed" in capsys.readouterr().err
