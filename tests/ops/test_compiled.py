"""The C is compiled once, by whoever comes first, and its absence is told and harms nobody."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from remamba.ops import compiled

ROOT = Path(__file__).resolve().parents[2]
HAS_COMPILER = compiled._compiler() is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C compiler")

TELL = """
import json, torch
from remamba.ops import compiled, explain, selective_scan, selective_scan_ref
torch.manual_seed(0)
x, B = torch.randn(2, 7, 5), torch.randn(2, 7, 3)
given = (x, x, -torch.rand(5, 3), B, B)
found, expected = selective_scan(*given), selective_scan_ref(*given)
error = max(float((a - b).abs().max()) for a, b in zip(found, expected))
(row,) = [row for row in explain("cpu") if row[0] == "selective_scan"]
print(json.dumps({"error": error, "form": row[1], "why": row[2]}))
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that scans, and tells by which form and why."""
    own = {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("CC", "REMAMBA_BACKEND")}
    return subprocess.Popen(
        [sys.executable, "-c", TELL],
        env={**inherited, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["error"] < 1e-5
    return found


def libraries(cache: Path) -> list[Path]:
    return sorted((cache / "remamba" / "kernels").glob("*"))


def shared_objects(cache: Path) -> list[Path]:
    return [path for path in libraries(cache) if path.suffix == ".so"]


def test_without_a_compiler_the_torch_forms_run(tmp_path: Path) -> None:
    found = told(start(tmp_path, PATH=str(tmp_path)))
    assert found["form"] == "torch"
    assert str(found["why"]).startswith("no 'c': no C compiler is installed")
    assert libraries(tmp_path) == []


def test_a_compiler_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'kernels.c:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    found = told(start(tmp_path, CC=str(broken)))
    assert found["form"] == "torch"
    assert str(found["why"]).endswith(
        "cannot compile the kernels: kernels.c:1: error: no such thing"
    )
    assert "\n" not in str(found["why"])
    assert shared_objects(tmp_path) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """It is a file, which stops root too."""
    place = tmp_path / "cache"
    place.write_text("")
    found = told(start(place))
    assert found["form"] == "torch"
    assert "cannot be written" in str(found["why"]) and "\n" not in str(found["why"])


@needs_compiler
def test_a_library_is_kept_and_a_damaged_one_compiled_anew(tmp_path: Path) -> None:
    assert told(start(tmp_path))["form"] == "c"
    (path,) = shared_objects(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert told(start(tmp_path))["form"] == "c"
    assert max(len(path.read_bytes()) for path in shared_objects(tmp_path)) >= len(whole)
    times = [path.stat().st_mtime_ns for path in shared_objects(tmp_path)]
    assert told(start(tmp_path))["form"] == "c"
    assert [path.stat().st_mtime_ns for path in shared_objects(tmp_path)] == times


@needs_compiler
@pytest.mark.slow
def test_ten_processes_at_once(tmp_path: Path) -> None:
    running = [start(tmp_path) for _ in range(10)]
    assert {told(process)["form"] for process in running} == {"c"}
    assert len(shared_objects(tmp_path)) == 1
    assert not [path for path in libraries(tmp_path) if path.name.endswith(".part")]


def test_the_key_knows_source_flags_compiler_and_processor(monkeypatch, tmp_path: Path) -> None:
    compiler = [sys.executable]
    keys = [compiled._key(compiler, ("-O3",)), compiled._key(compiler, ("-O2",))]
    keys.append(compiled._key([*compiler, "-I"], ("-O3",)))
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    keys.append(compiled._key(compiler, ("-O3",)))
    source = tmp_path / "more.c"
    source.write_text("int more;")
    monkeypatch.setattr(compiled, "_sources", lambda: [source])
    keys.append(compiled._key(compiler, ("-O3",)))
    source.write_text("int less;")
    keys.append(compiled._key(compiler, ("-O3",)))
    assert len(set(keys)) == len(keys)


ELEMENTARY = """
#include "vector.h"
#define OVER(name) EXPORT void over_##name(float *v, int64_t count) { \\
    for (int64_t i = 0; i < count; i += LANES) store(v + i, name##_of(load(v + i))); }
OVER(exp2) OVER(exp) OVER(log1p) OVER(softplus) OVER(silu)
EXPORT void over_bfloat16(float *v, int64_t count) {
    uint16_t half[LANES];
    for (int64_t i = 0; i < count; i += LANES) {
        put(half, 0, BF16, load(v + i));
        for (int64_t j = 0; j < LANES; j++) {
            uint16_t alone;
            put_one(&alone, 0, BF16, v[i + j]);
            v[i + j] = alone == half[j] ? one(half, j, BF16) : 12345.0f;
        }
    }
}
"""


@pytest.fixture(scope="module")
def elementary(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions of vector.h over arrays, compiled as the kernels are."""
    compiler = compiled._compiler()
    if compiler is None:
        pytest.skip("needs a C compiler")
    place = tmp_path_factory.mktemp("elementary")
    (place / "elementary.c").write_text(ELEMENTARY)
    flags = [*compiled.FLAGS, compiled._tuned(), f"-I{compiled.OPS}", "-shared"]
    library = place / "elementary.so"
    words = [*compiler, *flags, str(place / "elementary.c"), "-o", str(library)]
    subprocess.run(words, check=True, timeout=compiled.PATIENCE)
    return ctypes.CDLL(str(library))


def of(library: ctypes.CDLL, name: str, values: np.ndarray) -> np.ndarray:
    padded = np.resize(values.astype(np.float32), -(-len(values) // 16) * 16)
    place = padded.ctypes.data_as(ctypes.c_void_p)
    getattr(library, f"over_{name}")(place, ctypes.c_int64(len(padded)))
    return padded[: len(values)]


def units(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error in units of the last place of what is expected."""
    exact = expected.astype(np.float64)
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float((np.abs(found.astype(np.float64) - exact) / spacing).max())


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp2", np.exp2, -126, 127),
        ("exp", np.exp, -87, 88),
        ("log1p", np.log1p, 0, 1),
    ],
)
def test_elementary_functions_err_by_two_units_at_most(elementary, name, exact, low, high) -> None:
    grid = np.linspace(low, high, 1_000_003).astype(np.float32)
    near = np.geomspace(1e-30, 1, 100_003).astype(np.float32)
    for values in (grid, near if name == "log1p" else np.concatenate([near, -near])):
        assert units(of(elementary, name, values), exact(values.astype(np.float64))) <= 2


def test_softplus_and_silu_are_right_at_both_ends(elementary) -> None:
    values = np.concatenate([np.linspace(-200, 200, 100_003), [-1e30, 1e30, 0.0]])
    wide = values.astype(np.float32).astype(np.float64)
    softplus = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    np.testing.assert_allclose(of(elementary, "softplus", values), softplus, rtol=5e-7, atol=1e-35)
    with np.errstate(over="ignore"):
        silu = wide / (1 + np.exp(-wide))
    np.testing.assert_allclose(of(elementary, "silu", values), silu, rtol=5e-7, atol=1e-6)
    for name in ("exp2", "exp", "softplus", "silu"):
        assert np.isnan(of(elementary, name, np.array([np.nan]))).all()


def test_bfloat16_rounds_as_torch_does(elementary) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan])])
    found = of(elementary, "bfloat16", values)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(found, expected)
