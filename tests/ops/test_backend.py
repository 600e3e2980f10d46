"""One file decides which implementation runs, says why, and refuses what it cannot give."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from remamba import ops
from remamba.errors import InputError
from remamba.ops import backend, compiled, explain, nvrtc, resolve, selective_scan, use_backend
from remamba.ops.scan_inputs import ScanInputs


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REMAMBA_BACKEND", raising=False)
    backend._choose.cache_clear()
    yield
    backend._choose.cache_clear()


@pytest.fixture
def triton_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if selective_scan had a triton form, no other kernels, and triton were installed."""
    forms = {**backend.IMPLEMENTATIONS["selective_scan"], "triton": "math:sqrt"}
    forms.pop("cuda", None)
    monkeypatch.setitem(backend.IMPLEMENTATIONS, "selective_scan", forms)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("op", backend.IMPLEMENTATIONS)
def test_every_registered_function_exists(op: str) -> None:
    for name, place in backend.IMPLEMENTATIONS[op].items():
        assert name in backend.BACKENDS
        if place and not place.split(":")[0].rpartition(".")[2].startswith("triton"):
            assert callable(backend._load(op, name))


@pytest.mark.parametrize("op", backend.IMPLEMENTATIONS)
def test_cpu_runs_c_where_there_is_a_compiler(op: str, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "obstacle", lambda: "")
    best = "c" if "c" in backend.IMPLEMENTATIONS[op] else "torch"
    assert resolve(op, "cpu") == resolve(op, torch.device("cpu")) == best
    backend._choose.cache_clear()
    monkeypatch.setattr(compiled, "obstacle", lambda: "no C compiler is installed")
    assert resolve(op, "cpu") == "torch"
    told = {name: why for name, _, why in explain("cpu")}
    assert told[op] == ("no 'c': no C compiler is installed" if best == "c" else "fastest on cpu")


def test_use_backend_holds_within_its_context() -> None:
    with use_backend("ref"):
        assert resolve("ssd", "cpu") == "ref"
        with use_backend("torch"):
            assert resolve("ssd", "cpu") == "torch"
        assert resolve("ssd", "cpu") == "ref"
    assert resolve("ssd", "cpu") not in ("ref", None)


def test_environment(monkeypatch) -> None:
    monkeypatch.setenv("REMAMBA_BACKEND", "ref")
    assert resolve("ssd", "cpu") == "ref"
    with use_backend("torch"):
        assert resolve("ssd", "cpu") == "torch"


def test_public_op_runs_what_was_resolved(monkeypatch) -> None:
    ran = []
    spies = {name: lambda *_, name=name, **__: ran.append(name) for name in ("torch", "ref")}
    monkeypatch.setattr(backend, "_load", lambda op, name: spies[name])
    monkeypatch.setitem(backend._functions, "selective_scan", {})
    x = torch.randn(1, 3, 2)
    with use_backend("torch"):
        selective_scan(x, x, -torch.ones(2, 2), x, x)
    with use_backend("ref"):
        selective_scan(x, x, -torch.ones(2, 2), x, x)
    assert ran == ["torch", "ref"]


def test_float64_runs_torch_where_kernels_are_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    norm = torch.ones(2, 3)
    with use_backend("triton"):
        chosen = [
            backend.form_for("rms_norm", norm.device, x, None, eps=1.0)
            for x in (norm, norm.double())
        ]
    assert chosen == [("triton", ""), ("torch", "not triton: float64")]


def scan_inputs(n: int) -> ScanInputs:
    x, B = torch.randn(1, 3, 4), torch.randn(1, 3, n)
    return ScanInputs(x, x, -torch.ones(4, n), B, B)


def test_inputs_fall_through_to_the_first_form_that_takes_them(monkeypatch, caplog) -> None:
    """CUDA C++ has no kernel for 5 states, triton none for 65; each fall is told once."""
    monkeypatch.setattr(backend, "_obstacle", lambda kernels, device_type: "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend._tell.cache_clear()
    with use_backend("cuda"), caplog.at_level("INFO", logger="remamba"):
        found = [
            backend.form_for("selective_scan", torch.device("cpu"), scan_inputs(n))
            for n in (5, 65, 5)
        ]
        y, _ = backend.run("selective_scan", torch.device("cpu"), scan_inputs(65))
    assert [name for name, _ in found] == ["triton", "torch", "triton"]
    assert "not cuda: a state size that is none of" in found[1][1]
    assert "not triton: more than 64 states" in found[1][1]
    assert y.shape == (1, 3, 4)
    said = [record.message for record in caplog.records]
    assert sum(line.startswith("selective_scan: triton for some inputs") for line in said) == 1


def test_a_form_that_cannot_run_is_not_fallen_through_to(monkeypatch) -> None:
    def obstacle(kernels: str, device_type: str) -> str:
        return "triton is not installed" if kernels == "triton" else ""

    monkeypatch.setattr(backend, "_obstacle", obstacle)
    name, why = backend.form_for("selective_scan", torch.device("cuda"), scan_inputs(5))
    assert name == "torch" and "triton" not in why


def test_what_a_kernel_cannot_take_is_told_where_it_goes(monkeypatch) -> None:
    monkeypatch.setattr(backend, "_obstacle", lambda kernels, device_type: "")
    why = {op: why for op, _, why in explain("cuda")}
    goes = "fastest on cuda; what it cannot take goes to "
    assert why["selective_scan"] == goes + "triton, then torch"
    assert why["ssd"] == goes + "torch"


def test_unknown_name_is_refused(monkeypatch) -> None:
    with (
        pytest.raises(InputError, match=r"'metal'.*ref, torch, c, triton, cuda"),
        use_backend("metal"),
    ):
        pass
    monkeypatch.setenv("REMAMBA_BACKEND", "fast")
    with pytest.raises(InputError, match=r"REMAMBA_BACKEND.*'fast'"):
        resolve("ssd", "cpu")
    assert {choice for _, choice, _ in explain("cpu")} == {None}
    assert all("no backend 'fast'" in why for *_, why in explain("cpu"))


def test_triton_is_refused_where_it_cannot_run(triton_scan, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"), pytest.raises(InputError, match=r"triton.*cpu.*GPU"):
        resolve("selective_scan", "cpu")


def test_triton_is_chosen_on_a_gpu(triton_scan) -> None:
    assert resolve("selective_scan", "cuda") == "triton"
    with use_backend("torch"):
        assert resolve("selective_scan", "cuda") == "torch"


def test_cuda_is_the_fastest_where_it_can_run(monkeypatch) -> None:
    monkeypatch.setattr(nvrtc, "obstacle", lambda: "")
    assert resolve("selective_scan", "cuda") == "cuda"
    with use_backend("cuda"), pytest.raises(InputError, match=r"cuda.*cpu.*GPU"):
        resolve("selective_scan", "cpu")
    backend._choose.cache_clear()
    monkeypatch.setattr(nvrtc, "obstacle", lambda: "it needs compute capability 8.0")
    choices = {op: why for op, _, why in explain("cuda")}
    assert "no 'cuda': it needs compute capability 8.0" in choices["selective_scan"]


def test_triton_runs_on_the_cpu_when_asked(triton_scan, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("selective_scan", "cpu") != "triton"
    with use_backend("triton"):
        assert resolve("selective_scan", "cpu") == "triton"


def test_without_triton_a_gpu_runs_torch_and_says_so(triton_scan, monkeypatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    choices = {op: (choice, why) for op, choice, why in explain("cuda")}
    assert choices["selective_scan"] == ("torch", "no 'triton': triton is not installed")


def test_op_without_the_form_says_so() -> None:
    with use_backend("ref"):
        choices = {op: (choice, why) for op, choice, why in explain("cpu")}
    assert choices["ssd"] == ("ref", "asked for by use_backend")
    assert choices["causal_conv"] == ("torch", "torch's own; has no 'ref' form")


def test_choice_is_logged_once(caplog) -> None:
    with caplog.at_level("INFO", logger="remamba"):
        resolve("ssd", "cpu")
        resolve("ssd", "cpu")
    (said,) = [record.message for record in caplog.records if record.name.endswith("backend")]
    assert said.startswith("ssd on cpu: ")


def test_no_public_op_is_a_module_too() -> None:
    """Else `import remamba.ops.ssd as m` would give a function."""
    for name in ops.__all__:
        assert importlib.util.find_spec(f"remamba.ops.{name}") is None, name
