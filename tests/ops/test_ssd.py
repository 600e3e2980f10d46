"""Mamba-2's chunked scan equals its reference, which equals Mamba's scan head by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remamba.ops import selective_scan_ref, ssd, ssd_ref, use_backend
from remamba.ops.ssd_scan.torch import SEGMENT_TOKENS

LENGTHS = [1, 2, 63, 100]
OPTIONAL = ("D", "dt_bias", "dt_scale", "initial_state")
DTYPES = [torch.float64, torch.float32]


def make(
    b: int, l: int, h: int, p: int, g: int, n: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Every input there is, drawn in float64 so that dtypes see the same numbers."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    inputs = {
        "x": randn(b, l, h, p),
        "dt": randn(b, l, h),
        "A": -4 * torch.rand(h, dtype=torch.float64),
        "B": randn(b, l, g, n),
        "C": randn(b, l, g, n),
        "D": randn(h),
        "dt_bias": randn(h),
        "dt_scale": torch.rand(b, l, dtype=torch.float64),
        "initial_state": randn(b, h, p, n),
    }
    return {name: t.to(dtype) for name, t in inputs.items()}


def along(inputs: dict[str, Tensor], piece: slice, rows: slice = slice(None)) -> dict[str, Tensor]:
    """The same inputs at some positions of some rows."""
    cut = {"x", "dt", "B", "C", "dt_scale"}
    inputs = {name: t[:, piece] if name in cut else t for name, t in inputs.items()}
    by_row = cut | {"initial_state"}
    return {name: t[rows] if name in by_row else t for name, t in inputs.items()}


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of two chunks of 8, so that short sequences have several of both."""
    monkeypatch.setitem(SEGMENT_TOKENS, "cpu", 32)


def test_reference_is_mamba_with_shared_decay(same) -> None:
    """A head is p channels of Mamba's scan that share dt and A; heads of a group share B and C."""
    t = make(2, 5, 4, 3, 2, 2)
    y, state = ssd_ref(**t)
    for head in range(4):
        group = head // 2
        A = t["A"][head].expand(3, 2)
        head_y, head_state = selective_scan_ref(
            t["x"][:, :, head],
            t["dt"][:, :, head, None].expand(-1, -1, 3),
            A,
            t["B"][:, :, group],
            t["C"][:, :, group],
            t["D"][head].expand(3),
            dt_bias=t["dt_bias"][head].expand(3),
            dt_scale=t["dt_scale"],
            initial_state=t["initial_state"][:, head],
        )
        same(y[:, :, head], head_y)
        same(state[:, head], head_state)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f64", "f32"])
@pytest.mark.parametrize("g", [1, 2, 4], ids=lambda g: f"h4-p3-g{g}-n5")
@pytest.mark.parametrize("l", LENGTHS, ids=lambda l: f"b2-l{l}")
def test_equals_reference(l, g, dtype, small_segments, same, outputs_and_grads) -> None:
    inputs = make(2, l, 4, 3, g, 5, dtype)
    fast = outputs_and_grads(ssd, inputs, chunk_size=8)
    same(fast, outputs_and_grads(ssd_ref, inputs))


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 256], ids=lambda k: f"b1-l70-chunk{k}")
def test_chunk_size_changes_nothing(chunk_size: int, same, outputs_and_grads) -> None:
    inputs = make(1, 70, 2, 3, 1, 4)
    fast = outputs_and_grads(ssd, inputs, chunk_size=chunk_size)
    same(fast, outputs_and_grads(ssd_ref, inputs))


@pytest.mark.parametrize("missing", [*zip(OPTIONAL, strict=True), OPTIONAL], ids="-".join)
def test_equals_reference_without(missing, small_segments, same, outputs_and_grads) -> None:
    inputs = {name: t for name, t in make(2, 37, 4, 3, 2, 5).items() if name not in missing}
    fast = outputs_and_grads(ssd, inputs, chunk_size=8)
    same(fast, outputs_and_grads(ssd_ref, inputs))


@pytest.mark.parametrize("limit", [(0.0, 0.9), (0.6, float("inf")), (0.5, 1.0)], ids=str)
def test_dt_limit(limit: tuple[float, float], same, outputs_and_grads) -> None:
    inputs = make(2, 20, 4, 3, 2, 5)
    fast = outputs_and_grads(ssd, inputs, dt_limit=limit, chunk_size=8)
    same(fast, outputs_and_grads(ssd_ref, inputs, dt_limit=limit))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_narrow_inputs_accumulate_in_float32(dtype, same, outputs_and_grads) -> None:
    inputs = make(2, 40, 4, 3, 2, 5, dtype)
    inputs |= {"A": inputs["A"].float()}
    fast = outputs_and_grads(ssd, inputs, chunk_size=8)
    assert fast["y"].dtype == dtype
    assert fast["state"].dtype == torch.float32
    assert all(fast[f"d{name}"].dtype == t.dtype for name, t in inputs.items())
    wide = outputs_and_grads(ssd_ref, {k: t.double() for k, t in inputs.items()})
    same(fast["state"], wide["state"].float())
    same(fast, {name: t.to(fast[name].dtype) for name, t in wide.items()}, dtype)


def test_no_positions() -> None:
    inputs = make(2, 0, 4, 3, 2, 5)
    y, state = ssd(**inputs)
    assert y.shape == (2, 0, 4, 3)
    assert torch.equal(state, inputs["initial_state"])
    del inputs["initial_state"]
    assert torch.equal(ssd(**inputs)[1], torch.zeros(2, 4, 3, 5))


def test_strided_inputs(same, outputs_and_grads) -> None:
    """What mixers pass: slices of one projection, and transposed tensors."""
    inputs = make(2, 35, 4, 3, 2, 5)
    strided = dict(inputs)
    for name in ("x", "dt", "B", "C"):
        strided[name] = torch.cat([inputs[name]] * 2, dim=-1)[..., : inputs[name].shape[-1]]
    strided["initial_state"] = inputs["initial_state"].mT.contiguous().mT
    strided["dt_scale"] = inputs["dt_scale"].t().contiguous().t()
    same(outputs_and_grads(ssd, strided), outputs_and_grads(ssd, inputs))


@pytest.mark.parametrize("cuts", [(1, 2), (7, 9), (16, 64)], ids=str)
def test_pieces_equal_whole(cuts: tuple[int, ...], small_segments, same) -> None:
    inputs = make(2, 70, 4, 3, 2, 5)
    whole, final = ssd(**inputs, chunk_size=8)
    pieces, state = [], inputs["initial_state"]
    for start, stop in zip((0, *cuts), (*cuts, 70), strict=True):
        piece = along(inputs, slice(start, stop)) | {"initial_state": state}
        y, state = ssd(**piece, chunk_size=8)
        pieces.append(y)
    same(torch.cat(pieces, dim=1), whole)
    same(state, final)


def test_rows_equal_each_alone(small_segments, same, outputs_and_grads) -> None:
    inputs = make(3, 40, 4, 3, 2, 5)
    lengths = torch.tensor([40, 33, 0])
    y, state = ssd(**inputs, lengths=lengths, chunk_size=8)
    assert y.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone_y, alone_state = ssd(**along(inputs, slice(0, length), slice(row, row + 1)))
        same(y[row : row + 1, :length], alone_y)
        same(state[row : row + 1], alone_state)
    fast = outputs_and_grads(ssd, inputs, lengths=lengths, chunk_size=8)
    same(fast, outputs_and_grads(ssd_ref, inputs, lengths=lengths))


def test_scale_zero_leaves_the_state() -> None:
    inputs = make(2, 5, 4, 3, 2, 5)
    inputs["dt_scale"] = torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(ssd(**inputs)[1], inputs["initial_state"])


@pytest.mark.parametrize("l", [1, 5], ids=lambda l: f"b2-l{l}-h2-p1-g1-n2-chunk2")
def test_gradcheck(l: int, monkeypatch) -> None:
    monkeypatch.setitem(SEGMENT_TOKENS, "cpu", 4)
    inputs = {name: t.requires_grad_() for name, t in make(2, l, 2, 1, 1, 2).items()}
    names = list(inputs)

    def op(*values: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(**dict(zip(names, values, strict=True)), chunk_size=2)

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


@pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
def test_gradient_through_one_output(output: int, same) -> None:
    """The other output is then not given to backward at all."""
    inputs = {name: t.requires_grad_() for name, t in make(1, 34, 2, 3, 1, 4).items()}
    wanted = [inputs[name] for name in ("x", "dt", "A", "initial_state")]
    fast, reference = (
        torch.autograd.grad(op(**inputs)[output].square().sum(), wanted) for op in (ssd, ssd_ref)
    )
    for fast_grad, grad in zip(fast, reference, strict=True):
        same(fast_grad, grad)


def test_only_some_inputs_need_a_gradient(same) -> None:
    inputs = make(1, 34, 2, 3, 1, 4)
    inputs["dt_bias"].requires_grad_()
    grads = [
        torch.autograd.grad(op(**inputs)[0].sum(), inputs["dt_bias"])[0] for op in (ssd, ssd_ref)
    ]
    same(*grads)


def test_autocast_keeps_float32(same, outputs_and_grads) -> None:
    inputs = make(2, 34, 4, 3, 2, 5, torch.float32)
    plain = outputs_and_grads(ssd, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs_and_grads(ssd, inputs)
        with use_backend("ref"):
            assert ssd(**inputs)[1].dtype == torch.float32
    assert {t.dtype for t in cast.values()} == {torch.float32}
    same(cast, plain)


def test_training_keeps_inputs_and_few_states(small_segments, saved_elements) -> None:
    b, l, h, p, n = 1, 128, 4, 4, 4
    inputs = {k: t.requires_grad_() for k, t in make(b, l, h, p, 1, n, torch.float32).items()}
    kept = saved_elements(lambda: ssd(**inputs, chunk_size=8))
    assert kept <= sum(t.numel() for t in inputs.values()) + l // 32 * b * h * p * n
    assert kept < b * l * h * p * n


def test_small_decay_after_large_ones_keeps_its_digits(same) -> None:
    """Sums of decays in the thousands, then steps that hardly decay: their difference is exact."""
    inputs = make(1, 64, 2, 3, 1, 4, torch.float32)
    inputs["dt"][:, :32] += 300
    inputs["dt"][:, 32:] -= 3
    y, state = ssd(**inputs)
    wide_y, wide_state = ssd_ref(**{name: t.double() for name, t in inputs.items()})
    same(y[:, 40:], wide_y[:, 40:].float())
    same(state, wide_state.float())
