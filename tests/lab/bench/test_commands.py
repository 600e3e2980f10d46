"""`remamba bench` at tiny sizes: what it prints, keeps and refuses."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.bench import fig6, generate, ops, shapes
from lab.bench.check import LIMITS, WrongResults, compare_forms, use_states
from lab.bench.shapes import build
from remamba import cli
from remamba.model.states import StateCache
from remamba.ops import backend

SHAPES = ["--shapes", "mamba-tiny", "mamba2-tiny"]
TINY = [*SHAPES, "--device", "cpu", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once for real, in the ceilings' own test."""
    from lab.bench.ceilings import Ceilings

    for module in (ops, generate):
        monkeypatch.setattr(module, "measure_ceilings", lambda *_: Ceilings(1e10, 1e11, 1e9))


def bench(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The report printed by a benchmark, and what it said."""
    assert cli.main(["bench", *argv]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0]), said.err


def test_ceilings_are_rates() -> None:
    from lab.bench.ceilings import measure_ceilings

    found = measure_ceilings("cpu", "float32")
    assert all(1e6 < rate < 1e17 for rate in found.as_dict().values())


@pytest.mark.parametrize("method", ["plain", "remamba"])
def test_gaps(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["gaps", "--model", "mamba-tiny", "--device", "cpu", "--documents", "2", "--tokens"]
    report, said = bench([*argv, "90", "--at-once", "16", "40", "--method", method], capsys)
    assert [found["at_once"] for found in report["results"]] == [16, 40]
    for found in report["results"]:
        assert 0 < found["median_s"] <= found["p99_s"] <= found["longest_s"]
        assert found["tokens_per_s"] > 0
    assert "longest ms" in said


def test_ops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "ops.json"
    argv = ["ops", *TINY, "--lengths", "63", "--backward", "--steps", "2", "--output", str(kept)]
    report, said = bench(argv, capsys)
    timed = {(r["op"], r["what"]) for r in report["results"]}
    both = {"selective_scan", "ssd", "causal_conv", "rms_norm", "gated_rms_norm"}
    forward = both | {"selective_state_update", "ssd_state_update"}
    assert timed == {(op, "forward") for op in forward} | {(op, "backward") for op in both}
    for r in report["results"]:
        assert 0 < r["min_s"] <= r["median_s"] <= r["max_s"]
        assert r["over_floor"] == pytest.approx(r["median_s"] / r["floor_s"], rel=1e-2)
    assert {c["op"] for c in report["checks"]} == forward
    assert all(c["relative_error"] < LIMITS["float32"] for c in report["checks"])
    assert "selective_scan" in said and "floor ms" in said
    assert json.loads(kept.read_text())["results"][0]["samples_s"]


def test_ops_wrong_form_gets_no_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = backend._load("selective_scan", "ref")(*args, **kwargs)
        return y * 1.001, state

    monkeypatch.setattr(sys.modules["remamba.ops.scan.torch"], "wrong", wrong, False)
    form = "remamba.ops.scan.torch:wrong"
    monkeypatch.setitem(backend.IMPLEMENTATIONS["selective_scan"], "torch", form)
    monkeypatch.setitem(backend._functions, "selective_scan", {})
    argv = ["ops", "--shapes", "mamba-tiny", "--device", "cpu", "--ops", "selective_scan"]
    assert cli.main(["bench", *argv]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no speed is told" in said.err and "Traceback" not in said.err


def test_a_form_differs_at_the_timed_shape() -> None:
    """What only goes wrong at length is found there."""
    y = torch.randn(1, 9, 4)
    wrong = y.index_fill(1, torch.tensor(8), 0)
    case = ops.Case("selective_scan", "mamba-tiny", 1, 9)
    with pytest.raises(WrongResults, match="triton"):
        ops.check_at_length(case, {"torch": lambda: (y,), "triton": lambda: (wrong,)}, "float32")
    # a peer's channels come first
    same = {"torch": lambda: (y,), "mamba_ssm": lambda: (y.mT,)}
    assert ops.check_at_length(case, same, "float32")[0]["relative_error"] == 0


def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", *TINY, "--lengths", "63", "--batches", "1", "2", "--new-tokens", "3"]
    report, said = bench(argv, capsys)
    who = {(r["what"], r["who"]) for r in report["results"]}
    prefills = {"plain", "two-stages", "transformers", "products"}
    decodes = {"engine", "generate", "plain", "transformers", "products"}
    assert who == {("prefill", w) for w in prefills} | {("decode", w) for w in decodes}
    assert len(report["results"]) == 2 * (len(prefills) + 2 * len(decodes))
    for r in report["results"]:
        tokens = 63 if r["what"] == "prefill" else r["batch"] * (2 if "first_s" in r else 3)
        assert r["tokens_per_s"] == pytest.approx(tokens / r["median_s"], rel=1e-2)
        assert ("first_s" in r) == (r["who"] in ("engine", "generate"))
    assert [c["shape"] for c in report["checks"]] == ["mamba-tiny"] * 2 + ["mamba2-tiny"] * 2
    assert all(c["relative_error"] < LIMITS["float32"] for c in report["checks"])
    assert "two stages take" in said and "times as fast as transformers" in said


def test_generate_tells_no_speed_of_another_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode step that forgets its states is found, by forced steps or by the engine's tokens."""
    real = StateCache.update

    def forgetful(cache: Any, layer: int, conv: torch.Tensor, ssm: torch.Tensor) -> None:
        real(cache, layer, conv, ssm * 0.9)

    monkeypatch.setattr(StateCache, "update", forgetful)
    argv = ["generate", "--shapes", "mamba-tiny", "--device", "cpu", "--lengths", "20"]
    assert cli.main(["bench", *argv]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "no speed is told" in said.err


def test_long(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["long", "--tokens", "300", "--piece-length", "97", "--shape", "mamba-tiny"]
    report, said = bench([*argv, "--channels", "192", "--device", "cpu"], capsys)
    assert {r["who"] for r in report["results"]} == {"plain", "two-stages"}
    checks = {(c["what"], c["who"]) for c in report["checks"]}
    scans = {("op", op) for op in ("selective_scan", "ssd", "causal_conv")}
    assert checks == scans | {("equal", "pieces and kernels")}
    assert all(c["relative_error"] < c["limit"] for c in report["checks"])
    assert "pieces and kernels" in said


def test_fig6(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = ["fig6", "--scale", "tiny", "--device", "cpu", "--output", str(tmp_path / "figure")]
    small = ["--lengths", "20", "40", "--new-tokens", "9", "--repeats", "1"]
    report, _ = bench([*argv, *small], capsys)
    models = ["Mamba", "ReMamba", "Mamba-2", "ReMamba-2", "Llama"]
    assert list(dict.fromkeys(r["model"] for r in report["results"])) == models
    assert len(report["results"]) == len(models) * 2
    for r in report["results"]:
        whole = 9 / (r["prefill_s"]["median"] + 8 / r["decode_tokens_per_s"]["median"])
        assert r["tokens_per_s"]["min"] * 0.9 <= whole <= r["tokens_per_s"]["max"] * 1.1
    written = tmp_path / "figure"
    assert sorted(path.name for path in written.iterdir()) == sorted(fig6.FILES)
    assert (written / "fig6.png").read_bytes()[:4] == b"\x89PNG"
    assert "| ReMamba-2 | mamba2-tiny | 40 |" in (written / "fig6.md").read_text()
    assert cli.main(["bench", *argv]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["ops", "--shapes", "gpt-2"], "--shapes gpt-2 is unknown"),
        (["ops", "--ops", "attention", "--device", "cpu"], "--ops attention"),
        (["ops", "--backends", "numpy", "--device", "cpu"], "--backends numpy"),
        (["ops", "--lengths", "0"], "--lengths 0"),
        (["generate", "--shapes", "llama-3b"], "--shapes llama-3b"),
        (["generate", "--mambapy"], "pip install mambapy"),
        (["long", "--channels", "100"], "--channels 100"),
        (["fig6", "--output", "OUT", "--new-tokens", "2"], "--new-tokens 2"),
        (["fig6", "--output", __file__], "is a file"),
        (["fig6"], "--output"),
        (["ops", "--device", "cuda:99"], "cuda:99"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [str(tmp_path / "out") if word == "OUT" else word for word in argv]
    assert cli.main(["bench", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err and len(captured.err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_papers_scale_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "fig6", "--output", str(tmp_path / "out")]) == 2
    assert "--scale tiny" in capsys.readouterr().err


def test_a_missing_matplotlib_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["bench", "fig6", "--scale", "tiny", "--output", str(tmp_path / "o")]) == 2
    assert "remamba[eval]" in capsys.readouterr().err


def test_a_llama_that_cannot_be_compiled_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(fig6, "run_generate", failing)
    argv = ["fig6", "--shapes", "mamba-tiny", "llama-tiny", "--lengths", "20", "--new-tokens", "9"]
    argv += ["--repeats", "1", "--device", "cpu", "--output", str(tmp_path / "figure")]
    report, said = bench(argv, capsys)
    assert report["left_out"] == ["llama-tiny at 20: no compiler"]
    assert [r["model"] for r in report["results"]] == ["Mamba", "ReMamba"]
    assert "left out: llama-tiny" in said
    monkeypatch.setattr(fig6, "run_engine", failing)
    with pytest.raises(RuntimeError, match="no compiler"):
        cli.main(["bench", *argv, "--overwrite"])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "argv",
    [
        ["ops", *SHAPES, "--lengths", "63", "--backward"],
        ["generate", *SHAPES, "--lengths", "63", "--batches", "1", "2", "--new-tokens", "4"],
        ["long", "--tokens", "3000", "--piece-length", "700", "--shape", "mamba-tiny"],
        ["fig6", "--scale", "tiny", "--output", "OUT"],
    ],
    ids=lambda argv: argv[0],
)
def test_on_a_gpu(argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [str(tmp_path / "out") if word == "OUT" else word for word in argv]
    report, _ = bench([*argv, "--device", "cuda"], capsys)
    assert report["results"] and not report.get("left_out")
    assert report["settings"]["dtype"] == "bfloat16"
    assert all(r.get("peak_gib", 1) > 0 for r in report["results"])


def test_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "step.json"
    argv = ["step", *TINY, "--rows", "1", "--tokens", "9", "--repeats", "2", "--output", kept]
    report, said = bench(list(map(str, argv)), capsys)
    assert [(r["shape"], r["who"]) for r in report["results"]] == [
        ("mamba-tiny", "remamba"),
        ("mamba2-tiny", "remamba"),
    ]
    for r in report["results"]:
        assert r["tokens_per_s"] == pytest.approx(9 / r["median_s"], rel=1e-2)
    assert "1 x 9" in said and json.loads(kept.read_text())["results"]


def test_our_forms_are_compared_where_no_peer_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is wrong in the states it leaves is found by the steps behind it."""
    ours = build(shapes.SHAPES["mamba-tiny"], "cpu", "float32")
    use_states(ours)
    assert compare_forms(ours, "float32")["relative_error"] < 1e-6  # in C, where that runs
    with backend.use_backend("torch"):
        assert compare_forms(ours, "float32")["relative_error"] == 0
    right: Any = backend._load("selective_scan", "ref")

    def wrong(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = right(*args, **kwargs)
        return y, state * 0.9

    monkeypatch.setattr(sys.modules["remamba.ops.scan.torch"], "wrong", wrong, False)
    form = "remamba.ops.scan.torch:wrong"
    monkeypatch.setitem(backend.IMPLEMENTATIONS["selective_scan"], "ref", form)
    monkeypatch.setitem(backend._functions, "selective_scan", {})
    with backend.use_backend("ref"), pytest.raises(WrongResults, match="decode steps"):
        compare_forms(ours, "float32")
