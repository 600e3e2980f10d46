"""The CUDA C++ scan: on a GPU as it is, elsewhere its very source as a program of the CPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remamba.ops import selective_scan, selective_scan_ref, use_backend
from remamba.ops.scan import cuda as selective_scan_cuda
from remamba.ops.scan.cuda import SOURCE, plan, plan_backward
from remamba.ops.scan_inputs import ScanInputs

HERE = Path(__file__).parent


def scan(**inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The form itself: off a GPU the backend would refuse it."""
    return selective_scan_cuda.selective_scan_cuda(ScanInputs(**inputs))


@functools.cache
def emulated(name: str, shared: str, **defines: int):
    """A kernel of the source compiled for the CPU, each thread a fiber (cuda_emulation.h)."""
    text = "\n".join(
        [
            f'#include "{HERE / "cuda_emulation.h"}"',
            *(f"#define {key} {value}" for key, value in defines.items()),
            f'#include "{SOURCE}"',
            'extern "C" size_t run(const Arguments* a, unsigned x, unsigned y) {',
            f"launch({name}, x, y, THREADS, sizeof({shared}), *a); return sizeof({shared}); }}",
        ]
    )
    folder = Path(tempfile.mkdtemp())
    (folder / "scan.cpp").write_text(text)
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "scan.cpp", "-o", "scan.so"]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    run = ctypes.CDLL(str(folder / "scan.so")).run
    run.restype = ctypes.c_size_t
    return run


@pytest.fixture(params=[8, 16])
def lanes(request) -> int:
    """How many lanes have a channel's states, in the forward kernel."""
    return request.param


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, lanes: int) -> str:
    """A GPU, or the CPU, on which the kernels' launches run the emulated source."""
    monkeypatch.setattr(selective_scan_cuda, "plan", lambda *_: (16 // (32 // lanes), lanes))
    monkeypatch.setattr(selective_scan_cuda, "plan_backward", lambda *_: 2)
    kernels = functools.lru_cache(selective_scan_cuda._kernel.__wrapped__)
    monkeypatch.setattr(selective_scan_cuda, "_kernel", kernels)
    if torch.cuda.is_available():
        return "cuda"
    if shutil.which("g++") is None:
        pytest.skip("needs g++")

    def load(source: Path, name: str, defines: tuple, threads: int, shared: int, device: None):
        struct = "ForwardShared" if name == "scan_forward" else "BackwardShared"
        run = emulated(name, struct, **dict(defines))

        def kernel(grid: tuple[int, int], arguments: bytes, device: None) -> None:
            assert run(arguments, *grid) == shared

        return kernel

    monkeypatch.setattr(selective_scan_cuda.nvrtc, "load", load)
    return "cpu"


def make(device: str, b=1, l=19, e=16, n=16, dtype=torch.float32, absent: str = "", wide=False):
    """Inputs of a scan; wide: rows are parts of wider ones, as a mixer's projections give them."""

    def rows(width: int) -> Tensor:
        whole = torch.randn(b, l, width + 8 * wide, device=device).to(dtype)
        return whole[..., 8 * wide :]

    inputs = {
        "x": rows(e), "dt": rows(e) - 1, "A": -torch.rand(e, n, device=device) - 0.1,
        "B": rows(n), "C": rows(n), "D": torch.randn(e, device=device).to(dtype), "z": rows(e),
        "dt_bias": torch.randn(e, device=device).to(dtype),
        "initial_state": torch.randn(b, e, n, device=device),
    }  # fmt: skip
    return {name: t for name, t in inputs.items() if name not in absent.split()}


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"l": 1, "absent": "z D dt_bias initial_state"},
        {"l": 2, "b": 2, "absent": "z"},
        {"l": 63, "e": 4},
        {"l": 100, "e": 12, "b": 2, "absent": "D"},
        {"n": 8, "absent": "initial_state"},
        {"n": 32, "absent": "dt_bias"},
        {"l": 70, "dtype": torch.bfloat16, "e": 24},
        {"l": 33, "dtype": torch.bfloat16, "wide": True},
    ],
    ids=str,
)
def test_outputs_state_and_gradients_equal_the_reference(
    sizes, device, lanes, same, outputs_and_grads
) -> None:
    if lanes > sizes.get("n", 16):
        pytest.skip("fewer states than lanes")
    inputs = make(device, **sizes)
    found = outputs_and_grads(scan, inputs)
    wanted = outputs_and_grads(selective_scan_ref, inputs)
    same(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gates_that_lose_y_still_have_gradients(dtype, device, same, outputs_and_grads) -> None:
    """The backward kernel divides the gate out of y, which a gate of 0 does not allow."""
    inputs = make(device, l=70, dtype=dtype)
    z = inputs["z"]
    z[:, 3:9], z[:, 20, ::2], z[:, 40], z[:, 50:58] = 0, 0, 1e-38, -40
    z[:, 60, 1::3] = 80
    found = outputs_and_grads(scan, inputs)
    same(found, outputs_and_grads(selective_scan_ref, inputs))
    assert found["dz"][:, 20, ::2].any()


def test_lengths_and_scale_leave_the_state_alone(device, same) -> None:
    inputs = make(device, b=2, l=37)
    scale = torch.rand(2, 37, device=device)
    lengths = torch.tensor([5, 37], device=device)
    real = torch.arange(37, device=device) < lengths[:, None]
    found = scan(**inputs, dt_scale=scale * real)
    y, state = selective_scan_ref(**inputs, dt_scale=scale, lengths=lengths)
    same(found[1], state)
    same(found[0] * real[..., None], y * real[..., None])


def test_pieces_equal_the_whole(device, same) -> None:
    inputs = make(device, l=50)
    whole, last = scan(**inputs)
    state, pieces = inputs.pop("initial_state"), []
    for cut in (slice(0, 17), slice(17, 49), slice(49, 50)):
        part = {k: t[:, cut] if t.dim() == 3 else t for k, t in inputs.items()}
        y, state = scan(**part, initial_state=state)
        pieces.append(y)
    same(torch.cat(pieces, 1), whole)
    same(state, last)


@pytest.mark.parametrize("raw", [-30.0, -5.0, -0.7, -0.69, 0.0, 3.0, 19.9, 20.1, 60.0])
def test_time_steps_of_every_size(raw, device, same) -> None:
    inputs = make(device, l=3, absent="dt_bias z")
    inputs["dt"] = torch.full_like(inputs["dt"], raw)
    inputs["A"] = inputs["A"] * 0.05
    same(scan(**inputs)[0], selective_scan_ref(**inputs)[0])


def test_parameters_may_be_strided(device, same) -> None:
    inputs = make(device)
    spread = {k: inputs[k].repeat_interleave(2)[::2] for k in ("D", "dt_bias")}
    found = scan(**inputs | spread)
    same(found[0], selective_scan_ref(**inputs)[0])


def test_inputs_of_one_shape_find_their_own_kernels(device, same) -> None:
    rows = {"x", "dt", "B", "C", "z"}
    for absent in ("", "z", "D", "dt_bias"):
        for narrow in (False, True):
            inputs = make(device, absent=absent)
            if narrow:
                inputs |= {k: inputs[k].bfloat16() for k in rows & inputs.keys()}
            y, state = scan(**inputs)
            wanted, last = selective_scan_ref(**{k: t.float() for k, t in inputs.items()})
            same(y.float(), wanted, y.dtype)
            same(state, last)


def test_inputs_that_the_kernels_are_not_written_for_go_elsewhere(device) -> None:
    def fits(**changes) -> bool:
        return not selective_scan_cuda.fits(ScanInputs(**{**make(device), **changes}))

    sound = make(device)
    assert fits()
    assert not fits(A=torch.ones(16, 5), B=torch.ones(1, 19, 5), C=torch.ones(1, 19, 5))
    assert not fits(x=sound["x"].double())
    assert not fits(B=sound["B"].bfloat16())
    assert not fits(z=torch.ones(1, 19, 17)[..., 1:])
    assert not fits(D=sound["D"].bfloat16()) and not fits(D=sound["D"].bfloat16(), dt_bias=None)
    many = {k: sound[k].expand(65_536, 19, -1) for k in ("x", "dt", "B", "C", "z")}
    assert not fits(**many)
    assert not fits(dt_scale=torch.ones(1, 19, requires_grad=True))
    with torch.no_grad():
        assert fits(dt_scale=torch.ones(1, 19, requires_grad=True))


def test_compilers_see_one_op(device, same) -> None:
    inputs = make(device, wide=True, dtype=torch.bfloat16)
    torch.compiler.reset()
    run = torch.compile(scan, backend="eager", fullgraph=True)
    with torch.no_grad():
        y, state = run(**inputs)
        wanted, last = scan(**inputs)
        assert torch.equal(y, wanted) and torch.equal(state, last)
        # a compiler does not know where a tensor begins
        inputs["x"] = torch.cat([inputs["x"].new_zeros(1), inputs["x"].flatten()])[1:].view_as(y)
        y, state = run(**inputs)
    assert torch.equal(y, wanted) and torch.equal(state, last)


def test_plans_fill_a_gpu() -> None:
    assert plan(1, 5120, 16, 132) == (20, 16)  # 128 blocks, 5 warps a scheduler
    assert plan(1, 5120, 8, 132) == (12, 8)  # fewer states than 16 lanes
    assert plan_backward(1, 5120, 132) == 10  # 128 blocks
    assert plan_backward(8, 1536, 132) == 12  # 256 blocks, 2 a multiprocessor
    assert plan_backward(1, 16, 132) == 2


@pytest.mark.gpu
def test_it_is_the_default_on_a_gpu() -> None:
    inputs = make("cuda", b=2, l=300, e=64, dtype=torch.bfloat16)
    y, state = selective_scan(**inputs)
    with use_backend("cuda"):
        again, state_again = selective_scan(**inputs)
    assert torch.equal(y, again) and torch.equal(state, state_again)
