"""The selective scan in C equals the reference; what it must not take goes to torch."""

from __future__ import annotations

import pytest
import torch

from remamba.ops import compiled, selective_scan, selective_scan_ref, use_backend
from remamba.ops.backend import form_for
from remamba.ops.recording import GRADIENT, repeating
from remamba.ops.scan_inputs import ScanInputs

pytestmark = pytest.mark.skipif(bool(compiled.obstacle()), reason=compiled.obstacle())

OPTIONS = ("D", "z", "dt_bias", "dt_scale", "lengths", "initial_state")


def inputs(b: int, length: int, e: int, n: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """x, dt, z, B and C are columns of wider rows, as a mixer's projections give them."""
    wide = torch.randn(b, length, 3 * e + 5).to(dtype)
    low = torch.randn(b, length, 2 * n + 3).to(dtype)
    return {
        "x": wide[..., :e], "z": wide[..., e : 2 * e], "dt": wide[..., 2 * e + 5 :],
        "A": -4 * torch.rand(e, n), "B": low[..., 3 : 3 + n], "C": low[..., 3 + n :],
        "D": torch.randn(e), "dt_bias": torch.randn(e), "dt_scale": torch.rand(b, length),
        "lengths": torch.arange(length, length - b, -1).clamp(min=0),
        "initial_state": torch.randn(b, e, n),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "length", "e", "n"), [(1, 1, 1, 1), (2, 63, 17, 16), (3, 100, 40, 5), (2, 33, 16, 65)]
)
def test_equals_the_reference(b, length, e, n, dtype, same) -> None:
    given = inputs(b, length, e, n, dtype)
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with use_backend("c"):
                found = selective_scan(**given)
        finally:
            torch.set_num_threads(before)
        expected = selective_scan_ref(**given)
        real = torch.arange(length) < given["lengths"].unsqueeze(1)
        same(found[0][real], expected[0][real])
        same(found[1], expected[1])
        assert found[0].dtype == dtype and found[0].is_contiguous()
        assert found[0].isfinite().all()


@pytest.mark.parametrize("left_out", OPTIONS)
def test_every_option_may_be_left_out(left_out: str, same) -> None:
    given = inputs(2, 35, 19, 16)
    del given[left_out]
    with use_backend("c"):
        found = selective_scan(**given)
    same(found[1], selective_scan_ref(**given)[1])
    if left_out == "lengths":
        same(found[0], selective_scan_ref(**given)[0])


def test_what_lies_beyond_a_row_is_never_read_into_its_state(same) -> None:
    """Neither NaN nor infinity in pads; a row without a token keeps its state."""
    given = inputs(3, 70, 21, 16)
    given["lengths"] = torch.tensor([70, 33, 0])
    clean = selective_scan_ref(**given)
    for name in ("x", "dt", "z", "B", "C"):
        given[name] = given[name].clone()
        given[name][1, 33:], given[name][2] = float("nan"), float("inf")
    with use_backend("c"):
        y, state = selective_scan(**given)
    same(state, clean[1])
    assert torch.equal(state[2], given["initial_state"][2])
    same(y[0], clean[0][0])
    same(y[1, :33], clean[0][1, :33])


def test_pieces_are_the_whole(same) -> None:
    given = inputs(2, 90, 18, 16)
    del given["lengths"]
    along = ("x", "z", "dt", "B", "C", "dt_scale")
    with use_backend("c"):
        whole = selective_scan(**given)
        state, parts = given.pop("initial_state"), []
        for piece in (slice(0, 1), slice(1, 47), slice(47, 90)):
            cut = {k: v[:, piece] if k in along else v for k, v in given.items()}
            y, state = selective_scan(**cut, initial_state=state)
            parts.append(y)
    same(torch.cat(parts, 1), whole[0])
    same(state, whole[1])


def test_no_number_stays_none() -> None:
    given = inputs(1, 5, 17, 4)
    given["x"] = given["x"].clone()
    given["x"][0, 2, 3] = float("nan")
    del given["lengths"]
    with use_backend("c"):
        y, state = selective_scan(**given)
    assert y[0, 2:, 3].isnan().all() and state[0, 3].isnan().all()
    assert int(y.isnan().sum()) == 3 and int(state.isnan().sum()) == 4


def test_training_and_what_repeats_it_keep_torch() -> None:
    given = inputs(1, 3, 4, 5)
    scan = ScanInputs(*(given.get(name) for name in ScanInputs._fields))

    def chosen(found: ScanInputs) -> tuple[str, str]:
        return form_for("selective_scan", torch.device("cpu"), found)

    with use_backend("c"):
        assert chosen(scan) == ("c", "")
        with repeating():
            assert chosen(scan) == ("torch", f"not c: {GRADIENT}")
        trained = scan._replace(A=scan.A.requires_grad_())
        assert chosen(trained) == ("torch", f"not c: {GRADIENT}")
        with torch.no_grad():
            assert chosen(trained) == ("c", "")
        assert chosen(scan._replace(x=scan.x.half()))[0] == "torch"
        assert chosen(scan._replace(x=scan.x.double()))[0] == "torch"
        with torch.no_grad():
            mixed = chosen(scan._replace(x=scan.x.bfloat16()))
        assert mixed == ("torch", "not c: rows of several dtypes")
