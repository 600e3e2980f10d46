"""Timing in turns, floors, and the report's head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lab.bench import report
from lab.bench.ceilings import Ceilings, Work
from lab.bench.check import WrongResults, judge, relative_error
from lab.bench.measure import Sample, Times, prepare, ratio, take_turns
from lab.bench.settings import Fig6Args, OpsArgs
from remamba.errors import InputError


def counting_clock(order: list[str]):
    def clock(run, device: str) -> Sample:
        order.append(run())
        return Sample(1.0, first=0.5)

    return clock


def test_turns_begin_with_another_contender_each_time() -> None:
    order: list[str] = []
    contenders = {name: (lambda name=name: name) for name in "abc"}
    times = take_turns(contenders, 3, "cpu", clock=counting_clock(order), warm_up=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert [len(taken.samples) for taken in times.values()] == [3, 3, 3]


def test_a_slow_contender_gets_fewer_turns() -> None:
    import time

    contenders = {"slow": lambda: time.sleep(0.06), "fast": lambda: None}
    times = take_turns(contenders, 5, "cpu", warm_up=3, budget=0.15)
    assert 1 <= len(times["slow"].samples) <= 2
    assert len(times["fast"].samples) == 5
    assert ratio(times["slow"], times["fast"])["min"] > 1


def test_times_tell_the_median_of_one_step() -> None:
    times = Times([Sample(w, host=w / 2, first=1.0) for w in (4.0, 1.0, 2.0)], 2**30)
    found = times.as_dict(2)
    assert (found["median_s"], found["min_s"], found["max_s"]) == (1.0, 0.5, 2.0)
    assert (found["host_s"], found["first_s"], found["peak_gib"]) == (0.5, 0.5, 1.0)
    assert found["samples_s"] == [2.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("work", "floor", "what"),
    [
        (Work(100, 1, 1), 10.0, "bytes"),
        (Work(1, 400, 1), 20.0, "products"),
        (Work(1, 1, 60), 15.0, "exponentials"),
    ],
)
def test_the_floor_is_the_longest(work: Work, floor: float, what: str) -> None:
    assert work.floor(Ceilings(10, 20, 4)) == (floor, what)


@pytest.mark.parametrize("bad", [float("nan"), 1e-2], ids=["nan", "large"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_wrong_result_is_told_wherever_it_stands(bad: float, place: int) -> None:
    errors = dict(zip("xy", [bad, 1e-6] if place == 0 else [1e-6, bad], strict=True))
    with pytest.raises(WrongResults, match="xy"[place]):
        judge("an op", errors, 1e-4)
    assert judge("an op", {"x": 1e-6, "y": 1e-7}, 1e-4)["of"] == "x"


@pytest.mark.parametrize("bad", [float("nan"), 1e-2], ids=["nan", "large"])
def test_what_is_no_mistake_of_ours_is_told(bad: float) -> None:
    found = judge("a peer", {"x": bad, "y": 1e-6}, 1e-4, is_told=True)
    assert found["of"] == "x" and found["beyond"]
    assert "beyond" not in judge("a peer", {"x": 1e-5}, 1e-4, is_told=True)


def test_relative_error_of_what_is_not_finite_is_nan() -> None:
    wanted = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -3.0]), wanted) == 0.25
    assert relative_error(torch.tensor([float("nan"), -4.0]), wanted) != 0


def test_the_command_line_gives_the_settings_again(tmp_path: Path) -> None:
    args = OpsArgs(device="cpu", shapes=("mamba-tiny",), lengths=(63, 100), backward=True)
    words = "remamba bench ops --device cpu --shapes mamba-tiny --lengths 63 100 --backward"
    assert report.command_line("ops", args) == words
    figure = Fig6Args(output=tmp_path, compile=False)
    assert report.command_line("fig6", figure).endswith(f"--output {tmp_path} --no-compile")


def test_the_printed_report_has_no_samples() -> None:
    whole = {"results": [{"median_s": 0.123456, "samples_s": [0.1], "met": True, "n": 123456}]}
    assert report.compact(whole) == {"results": [{"median_s": 0.1235, "met": True, "n": 123456}]}


def test_results_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    paths = report.result_paths("probe", tmp_path / "x.json")
    report.keep({"a": 1.5}, "# page\n", paths)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1.5}
    assert sorted(path.suffix for path in (tmp_path / "results").iterdir()) == [".json", ".md"]
    for given in (("probe", None), (None, tmp_path / "x.json")):
        with pytest.raises(InputError, match="not overwritten"):
            report.result_paths(*given)
    with pytest.raises(InputError, match="make it first"):
        report.result_paths(None, tmp_path / "nowhere" / "x.json")
    with pytest.raises(InputError, match="letters"):
        report.result_paths("../x", None)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "no" / "results")
    with pytest.raises(InputError, match="needs a checkout"):
        report.result_paths("probe", None)


@pytest.mark.parametrize("device", ["tpu9", "xpu", "meta"])
def test_a_strange_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=device):
        prepare(OpsArgs(device=device))
