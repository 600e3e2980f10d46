"""The C kernels equal the torch forms: odd sizes, strides, pads, several threads, bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from remamba.ops import (
    causal_conv,
    compiled,
    gated_rms_norm,
    rms_norm,
    selective_state_update,
    ssd,
    ssd_ref,
    ssd_state_update,
    use_backend,
)
from remamba.ops.backend import form_for

pytestmark = pytest.mark.skipif(bool(compiled.obstacle()), reason=compiled.obstacle())

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True, params=[1, 3], ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def both(op: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What C makes of it, and torch."""
    results = []
    for name in ("c", "torch"):
        with use_backend(name), torch.no_grad():
            results.append(op(*args, **kwargs))
    return results[0], results[1]


def all_same(same: Callable[..., None], found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        same(one, other)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("lengths", [None, [19, 0, 2]], ids=str)
@pytest.mark.parametrize(("width", "e"), [(1, 5), (2, 33), (4, 66), (5, 16)])
def test_convolution(width: int, e: int, lengths: list[int] | None, dtype, same) -> None:
    x = torch.randn(3, 19, 2 * e).to(dtype)[..., e:]
    weight, bias = torch.randn(width, e).to(dtype).t(), torch.randn(e).to(dtype)
    window = torch.randn(3, width - 1, e).to(dtype)
    for options in (
        {"bias": bias, "window": window},
        {"bias": None, "window": window, "silu": False},
        {"bias": bias, "window": None},
    ):
        given = {"lengths": None if lengths is None else torch.tensor(lengths), **options}
        all_same(same, *both(causal_conv, x, weight, **given))
    short = both(causal_conv, x[:, :1], weight, bias, window=window)
    all_same(same, *short)


@pytest.mark.parametrize("d", [1, 16, 37])
@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype", "weight_dtype"),
    [
        *((F32, F32, F32), (F32, None, F32), (F32, None, None), (BF16, F32, BF16)),
        *((BF16, BF16, BF16), (BF16, None, BF16), (BF16, F32, F32), (BF16, None, None)),
    ],
    ids=str,
)
def test_norm(d: int, x_dtype, residual_dtype, weight_dtype, same) -> None:
    x = torch.randn(2, 5, 2 * d).to(x_dtype)[..., d:]
    residual = None if residual_dtype is None else torch.randn(2, 5, d).to(residual_dtype)
    weight = None if weight_dtype is None else torch.randn(d).to(weight_dtype)
    found, expected = both(rms_norm, x, weight, residual=residual, eps=1e-3)
    all_same(same, found, expected)
    if residual is None:
        assert found[1] is x
    else:
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("e", "groups"), [(1, 1), (40, 1), (42, 3), (60, 20)])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(F32, F32), (BF16, BF16), (BF16, F32)], ids=str
)
def test_gated_norm(e: int, groups: int, dtype, weight_dtype, same) -> None:
    y, z = torch.randn(2, 3, e).to(dtype), torch.randn(2, 3, 2 * e + 3).to(dtype)[..., :e]
    weight = torch.randn(e).to(weight_dtype)
    all_same(same, *([t] for t in both(gated_rms_norm, y, z, weight, groups=groups, eps=1e-3)))


def ssd_inputs(b: int, length: int, h: int, p: int, g: int, n: int, dtype=F32) -> dict[str, Any]:
    """x, B, C and dt are columns of one wider tensor, as the mixer's are."""
    sizes = [h * p, g * n, g * n, h]
    x, B, C, dt = torch.randn(b, length, sum(sizes)).to(dtype).split(sizes, dim=-1)
    return {
        "x": x.unflatten(-1, (h, p)), "dt": dt, "A": -4 * torch.rand(h),
        "B": B.unflatten(-1, (g, n)), "C": C.unflatten(-1, (g, n)), "D": torch.randn(h),
        "dt_bias": torch.randn(h), "dt_scale": torch.rand(b, length),
        "lengths": torch.arange(length, length - b, -1).clamp(min=0),
        "initial_state": torch.randn(b, h, p, n),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1, 1), (2, 31, 4, 5, 2, 6), (3, 100, 6, 33, 3, 17), (1, 65, 2, 64, 1, 128)],
    ids=str,
)
def test_ssd(sizes: tuple[int, ...], dtype, same) -> None:
    given = ssd_inputs(*sizes, dtype=dtype)  # type: ignore[misc]
    real = torch.arange(sizes[1]) < given["lengths"].unsqueeze(1)
    for left_out in (None, "D", "dt_bias", "dt_scale", "lengths", "initial_state"):
        inputs = {name: t for name, t in given.items() if name != left_out}
        with use_backend("c"):
            y, state = ssd(**inputs, dt_limit=(0.1, 1.5))
        expected = ssd_ref(**inputs, dt_limit=(0.1, 1.5))
        assert y.dtype == dtype and y.isfinite().all()
        same(y[real], expected[0][real])
        same(state, expected[1])


def test_ssd_reads_no_pad_into_its_state(same) -> None:
    given = ssd_inputs(3, 70, 4, 5, 2, 6)
    given["lengths"] = torch.tensor([70, 33, 0])
    clean = ssd_ref(**given)
    for name in ("x", "dt", "B", "C"):
        given[name] = given[name].clone()
        given[name][1, 33:], given[name][2] = float("nan"), float("inf")
    with use_backend("c"):
        y, state = ssd(**given)
    same(state, clean[1])
    assert torch.equal(state[2], given["initial_state"][2])
    same(y[0], clean[0][0])
    same(y[1, :33], clean[0][1, :33])


def test_a_small_decay_after_large_ones_keeps_its_digits(same) -> None:
    """The sum of a chunk's steps holds both."""
    given = ssd_inputs(1, 32, 2, 3, 1, 4)
    given["A"] = torch.tensor([-1.0, -30.0])
    given["dt"] = given["dt"].clone()
    given["dt"][:, :8], given["dt"][:, 8:] = 20.0, -9.0
    del given["lengths"], given["dt_scale"], given["dt_bias"]
    wide = {name: t.double() for name, t in given.items()}
    with use_backend("c"):
        y, state = ssd(**given)
    expected = ssd_ref(**wide)
    same(y, expected[0].float())
    same(state, expected[1].float())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("left_out", [None, "D", "z", "dt_bias", "dt_scale"])
def test_steps(left_out: str | None, dtype, same) -> None:
    b, e, n, h, p, g = 3, 19, 17, 6, 5, 2
    wide, low = torch.randn(b, 3 * e).to(dtype), torch.randn(b, 2 * n).to(dtype)
    given = {
        "x": wide[:, :e], "z": wide[:, e : 2 * e], "dt": wide[:, 2 * e :], "A": -torch.rand(e, n),
        "B": low[:, :n], "C": low[:, n:], "D": torch.randn(e), "dt_bias": torch.randn(e),
        "dt_scale": torch.tensor([1.0, 0.0, 0.5]), "state": torch.randn(b, e, n),
    }  # fmt: skip
    given.pop(left_out, None)
    before = given["state"].clone()
    found, expected = both(selective_state_update, **given)
    all_same(same, found, expected)
    assert torch.equal(given["state"], before)
    heads = {
        "x": torch.randn(b, h, 2 * p).to(dtype)[..., :p], "dt": wide[:, :h], "A": -torch.rand(h),
        "B": torch.randn(b, g, n).to(dtype), "C": torch.randn(b, g, n).to(dtype),
        "D": torch.randn(h), "dt_bias": torch.randn(h), "dt_scale": given.get("dt_scale"),
        "state": torch.randn(b, h, p, n),
    }  # fmt: skip
    heads.pop(left_out, None)
    found, expected = both(ssd_state_update, **heads, dt_limit=(0.2, 0.9))
    all_same(same, found, expected)
    if left_out != "dt_scale":
        assert torch.equal(found[1][1], heads["state"][1])


def test_what_c_cannot_take_goes_to_torch() -> None:
    x, weight = torch.randn(2, 3, 4), torch.ones(4)
    with use_backend("c"):
        for changed, why in (
            (x.half(), "a dtype"),
            (x.double(), "a dtype"),
            (x.clone().requires_grad_(), "a gradient"),
        ):
            form, told = form_for("rms_norm", x.device, changed, weight, residual=None, eps=1.0)
            assert form == "torch" and told.startswith(f"not c: {why}")


def test_torch_func_and_autocast_go_to_torch(same) -> None:
    x, weight = torch.randn(5, 3, 4), torch.ones(4)
    norm = torch.func.vmap(lambda row: rms_norm(row, weight, eps=1.0)[0])
    with use_backend("c"):
        same(norm(x), rms_norm(x, weight, eps=1.0)[0])
        with torch.autocast("cpu", torch.bfloat16):
            form = form_for("rms_norm", x.device, x, weight, residual=None, eps=1.0)
    assert form == ("torch", "not c: autocast")
