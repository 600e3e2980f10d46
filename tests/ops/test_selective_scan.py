"""The fast selective scan equals the reference; the reference equals Eq. 2 of the Mamba paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remamba.ops import selective_scan, selective_scan_ref, use_backend

LENGTHS = [1, 2, 63, 100]
OPTIONAL = ("D", "z", "dt_bias", "dt_scale", "initial_state")
DTYPES = [torch.float64, torch.float32]


def make(b: int, l: int, e: int, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every input there is, drawn in float64 so that dtypes see the same numbers."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    inputs = {
        "x": randn(b, l, e),
        "dt": randn(b, l, e),
        "A": -4 * torch.rand(e, n, dtype=torch.float64),
        "B": randn(b, l, n),
        "C": randn(b, l, n),
        "D": randn(e),
        "z": randn(b, l, e),
        "dt_bias": randn(e),
        "dt_scale": torch.rand(b, l, dtype=torch.float64),
        "initial_state": randn(b, e, n),
    }
    return {name: t.to(dtype) for name, t in inputs.items()}


def along(inputs: dict[str, Tensor], piece: slice, rows: slice = slice(None)) -> dict[str, Tensor]:
    """The same inputs at some positions of some rows."""
    cut = {"x", "dt", "B", "C", "z", "dt_scale"}
    inputs = {name: t[:, piece] if name in cut else t for name, t in inputs.items()}
    by_row = cut | {"initial_state"}
    return {name: t[rows] if name in by_row else t for name, t in inputs.items()}


def test_reference_is_the_recurrence(same) -> None:
    """Against scalars, one channel and one state: nothing shared with the implementation."""
    t = make(1, 3, 1, 1)
    h = t["initial_state"].item()
    for i in range(3):
        step = torch.log1p(torch.exp(t["dt"][0, i] + t["dt_bias"])) * t["dt_scale"][0, i]
        h = torch.exp(step * t["A"]) * h + step * t["B"][0, i] * t["x"][0, i]
        z = t["z"][0, i]
        y = (t["C"][0, i] * h + t["D"] * t["x"][0, i]) * z * torch.sigmoid(z)
        got, state = selective_scan_ref(**along(t, slice(0, i + 1)))
        same(got[0, i], y.view(1))
        same(state, h.view(1, 1, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32"])
@pytest.mark.parametrize("l", LENGTHS, ids=lambda l: f"b2-l{l}-e6-n4")
def test_equals_reference(l: int, dtype: torch.dtype, same, outputs_and_grads) -> None:
    inputs = make(2, l, 6, 4, dtype)
    fast = outputs_and_grads(selective_scan, inputs)
    same(fast, outputs_and_grads(selective_scan_ref, inputs))


@pytest.mark.parametrize("missing", [*zip(OPTIONAL, strict=True), OPTIONAL], ids="-".join)
def test_equals_reference_without(missing, same, outputs_and_grads) -> None:
    inputs = {name: t for name, t in make(2, 37, 6, 4).items() if name not in missing}
    fast = outputs_and_grads(selective_scan, inputs)
    same(fast, outputs_and_grads(selective_scan_ref, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_narrow_inputs_accumulate_in_float32(dtype, same, outputs_and_grads) -> None:
    inputs = make(2, 40, 6, 4, dtype) | {"A": make(2, 1, 6, 4, torch.float32)["A"]}
    fast = outputs_and_grads(selective_scan, inputs)
    assert fast["y"].dtype == dtype
    assert fast["state"].dtype == torch.float32
    assert all(fast[f"d{name}"].dtype == t.dtype for name, t in inputs.items())
    wide = outputs_and_grads(selective_scan_ref, {k: t.double() for k, t in inputs.items()})
    same(fast["state"], wide["state"].float())
    same(fast, {name: t.to(fast[name].dtype) for name, t in wide.items()}, dtype)


def test_no_positions() -> None:
    inputs = make(2, 0, 6, 4)
    y, state = selective_scan(**inputs)
    assert y.shape == (2, 0, 6)
    assert torch.equal(state, inputs["initial_state"])
    del inputs["initial_state"]
    assert torch.equal(selective_scan(**inputs)[1], torch.zeros(2, 6, 4))


def test_strided_inputs(same, outputs_and_grads) -> None:
    """What mixers pass: slices of one projection, and transposed tensors."""
    inputs = make(2, 35, 6, 4)
    strided = dict(inputs)
    for name in ("x", "dt", "z", "B", "C"):
        strided[name] = torch.cat([inputs[name]] * 2, dim=-1)[..., : inputs[name].shape[-1]]
    for name in ("A", "initial_state"):
        strided[name] = inputs[name].mT.contiguous().mT
    strided["dt_scale"] = inputs["dt_scale"].t().contiguous().t()
    same(outputs_and_grads(selective_scan, strided), outputs_and_grads(selective_scan, inputs))


@pytest.mark.parametrize("cuts", [(1, 2), (31, 33), (32, 64)], ids=str)
def test_pieces_equal_whole(cuts: tuple[int, ...], same) -> None:
    inputs = make(2, 70, 6, 4)
    whole, final = selective_scan(**inputs)
    pieces, state = [], inputs["initial_state"]
    for start, stop in zip((0, *cuts), (*cuts, 70), strict=True):
        y, state = selective_scan(**along(inputs, slice(start, stop)) | {"initial_state": state})
        pieces.append(y)
    same(torch.cat(pieces, dim=1), whole)
    same(state, final)


def test_rows_equal_each_alone(same, outputs_and_grads) -> None:
    inputs = make(3, 40, 6, 4)
    lengths = torch.tensor([40, 33, 0])
    y, state = selective_scan(**inputs, lengths=lengths)
    assert y.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone_y, alone_state = selective_scan(
            **along(inputs, slice(0, length), slice(row, row + 1))
        )
        same(y[row : row + 1, :length], alone_y)
        same(state[row : row + 1], alone_state)
    fast = outputs_and_grads(selective_scan, inputs, lengths=lengths)
    same(fast, outputs_and_grads(selective_scan_ref, inputs, lengths=lengths))


def test_scale_zero_leaves_the_state() -> None:
    inputs = make(2, 5, 6, 4)
    inputs["dt_scale"] = torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(selective_scan(**inputs)[1], inputs["initial_state"])


@pytest.mark.parametrize("l", [1, 5], ids=lambda l: f"b2-l{l}-e2-n2-chunk2")
def test_gradcheck(l: int, monkeypatch) -> None:
    monkeypatch.setattr("remamba.ops.scan.torch.CHUNK", 2)
    inputs = {name: t.requires_grad_() for name, t in make(2, l, 2, 2).items()}
    names = list(inputs)

    def op(*values: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(**dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


@pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
def test_gradient_through_one_output(output: int, same) -> None:
    """The other output is then not given to backward at all."""
    grads = []
    for op in (selective_scan, selective_scan_ref):
        inputs = {name: t.requires_grad_() for name, t in make(1, 34, 3, 2).items()}
        torch.manual_seed(42)
        loss = op(**inputs)[output].square().sum()
        grads.append(torch.autograd.grad(loss, [inputs["x"], inputs["dt"], inputs["A"]]))
        torch.manual_seed(42)
    for fast, reference in zip(*grads, strict=True):
        same(fast, reference)


def test_only_some_inputs_need_a_gradient(same) -> None:
    inputs = make(1, 34, 3, 2)
    inputs["dt_bias"].requires_grad_()
    grads = [
        torch.autograd.grad(op(**inputs)[0].sum(), inputs["dt_bias"])[0]
        for op in (selective_scan, selective_scan_ref)
    ]
    same(*grads)


def test_autocast_keeps_float32(same, outputs_and_grads) -> None:
    inputs = make(2, 34, 6, 4, torch.float32)
    plain = outputs_and_grads(selective_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs_and_grads(selective_scan, inputs)
        with use_backend("ref"):
            assert selective_scan(**inputs)[1].dtype == torch.float32
    assert {t.dtype for t in cast.values()} == {torch.float32}
    same(cast, plain)


def test_training_keeps_inputs_and_few_states(saved_elements) -> None:
    b, l, e, n = 1, 128, 8, 16
    inputs = {k: t.requires_grad_() for k, t in make(b, l, e, n, torch.float32).items()}
    kept = saved_elements(lambda: selective_scan(**inputs))
    assert kept <= sum(t.numel() for t in inputs.values()) + l // 32 * b * e * n
    assert kept < b * l * e * n


def test_long_decay_is_stable() -> None:
    """Steps so large that the state is forgotten at once: no overflow, no NaN."""
    inputs = make(1, 64, 3, 2, torch.float32)
    inputs["dt"] = inputs["dt"] + 500
    y, state = selective_scan(**inputs)
    assert y.isfinite().all()
    assert state.isfinite().all()
