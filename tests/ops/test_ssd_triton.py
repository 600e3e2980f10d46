"""The Triton form of Mamba-2's scan equals the reference: outputs, state, every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from remamba.ops import ssd, ssd_ref, use_backend
from remamba.ops.backend import in_form
from remamba.ops.scan_inputs import ScanInputs
from remamba.ops.ssd_scan import triton as form
from remamba.ops.ssd_scan import triton_backward as backward_form
from remamba.ops.ssd_scan import triton_forward as forward_form

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONAL = ("D", "dt_bias", "dt_scale", "initial_state")
ssd_triton = in_form(ssd, "triton")
GRADIENTS_AT = [(1, 2), (2, 1), (63, 1), (100, 2), (130, 1)]


def make(
    b: int, l: int, h: int, p: int, g: int, n: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Every input there is; x, B, C are slices of one tensor and dt of another, as mixers pass."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE)

    x, B, C = randn(b, l, h * p + 2 * g * n).to(dtype).split([h * p, g * n, g * n], dim=-1)
    return {
        "x": x.unflatten(-1, (h, p)),
        "dt": randn(b, l, 5 + h).to(dtype)[..., 5:],
        "A": -4 * torch.rand(h, device=DEVICE),
        "B": B.unflatten(-1, (g, n)),
        "C": C.unflatten(-1, (g, n)),
        "D": randn(h).to(dtype),
        "dt_bias": randn(h),
        "dt_scale": torch.rand(b, l, device=DEVICE),
        "initial_state": randn(b, h, p, n),
    }


def wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() for name, t in inputs.items()}


def check(inputs: dict[str, Tensor], same, outputs_and_grads, dtype=None, **options) -> None:
    fast = outputs_and_grads(ssd_triton, inputs, **options)
    expected = outputs_and_grads(ssd_ref, wide(inputs), **options)
    assert fast["state"].dtype == torch.float32
    assert fast["y"].dtype == inputs["x"].dtype
    assert all(fast[f"d{name}"].dtype == t.dtype for name, t in inputs.items())
    same(fast, {name: t.to(fast[name].dtype) for name, t in expected.items()}, dtype)


@pytest.fixture
def one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_form, "MAX_SEGMENTS", 1)


@pytest.mark.parametrize(("l", "g"), GRADIENTS_AT, ids=lambda v: str(v))
def test_equals_reference(l: int, g: int, same, outputs_and_grads) -> None:
    """Lengths within a chunk, past one, and of several segments."""
    inputs = make(1, l, 2, 3, g, 5)
    segments = forward_form.plan(inputs["x"], inputs["B"], inputs["C"]).segments
    assert (segments > 2) == (l >= 100)
    check(inputs, same, outputs_and_grads)


def test_rows_and_heads_of_a_group(monkeypatch, same, outputs_and_grads) -> None:
    """b2-h6-g2: the heads of a group are cut in two programs, which add to the same B and C."""
    monkeypatch.setattr(backward_form, "head_blocks", lambda cut, x, g: (2, 2))
    check(make(2, 9, 6, 3, 2, 5), same, outputs_and_grads)


def test_several_blocks_of_a_head(same, outputs_and_grads) -> None:
    """p70-n33: blocks with a ragged end."""
    check(make(1, 34, 1, 70, 1, 33), same, outputs_and_grads)


def test_one_segment(one_segment, same, outputs_and_grads) -> None:
    check(make(1, 40, 2, 3, 1, 5), same, outputs_and_grads)


@pytest.mark.parametrize("missing", [*zip(OPTIONAL, strict=True), OPTIONAL], ids="-".join)
def test_equals_reference_without(missing, same, outputs_and_grads) -> None:
    inputs = {name: t for name, t in make(1, 37, 4, 3, 1, 5).items() if name not in missing}
    check(inputs, same, outputs_and_grads)


@pytest.mark.parametrize("limit", [(0.0, 0.9), (0.6, float("inf")), (0.5, 1.0)], ids=str)
def test_dt_limit(limit: tuple[float, float], same, outputs_and_grads) -> None:
    check(make(1, 20, 2, 3, 1, 5), same, outputs_and_grads, dt_limit=limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_narrow_inputs(dtype: torch.dtype, same, outputs_and_grads) -> None:
    """b1-l260-h2-p20-g1-n18: five chunks of narrow products, two segments."""
    check(make(1, 260, 2, 20, 1, 18, dtype), same, outputs_and_grads, dtype)


def test_other_layouts(same, outputs_and_grads) -> None:
    """Heads before the sequence, a last axis that is not dense, expanded and transposed inputs."""
    inputs = make(2, 5, 2, 4, 1, 5)
    plain = outputs_and_grads(ssd_triton, inputs)
    strided = dict(inputs)
    strided["x"] = inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)
    for name in ("B", "C", "dt", "initial_state"):
        strided[name] = inputs[name].mT.contiguous().mT
    strided["dt_scale"] = inputs["dt_scale"].t().contiguous().t()
    same(outputs_and_grads(ssd_triton, strided), plain)
    shared = inputs | {name: inputs[name][:1].expand_as(inputs[name]) for name in ("D", "A")}
    dense = shared | {name: shared[name].contiguous() for name in ("D", "A")}
    same(ssd_triton(**shared)[0], ssd_triton(**dense)[0])


@pytest.mark.parametrize("cuts", [(1, 2), (16, 37)], ids=str)
def test_pieces_equal_whole(cuts: tuple[int, ...], same) -> None:
    inputs = make(1, 50, 1, 3, 1, 5)
    whole, final = ssd_triton(**inputs)
    pieces, state = [], inputs["initial_state"]
    for start, stop in zip((0, *cuts), (*cuts, 50), strict=True):
        along = {"x", "dt", "B", "C", "dt_scale"}
        piece = {name: t[:, start:stop] if name in along else t for name, t in inputs.items()}
        y, state = ssd_triton(**piece | {"initial_state": state})
        pieces.append(y)
    same(torch.cat(pieces, dim=1), whole)
    same(state, final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_scale_zero_leaves_the_state(dtype: torch.dtype) -> None:
    inputs = make(2, 40, 2, 3, 1, 5, dtype)
    inputs["dt_scale"] = torch.zeros_like(inputs["dt_scale"])
    y, state = ssd_triton(**inputs)
    assert torch.equal(state, inputs["initial_state"])
    assert y.isfinite().all()


def test_rows_equal_each_alone(same) -> None:
    inputs = make(3, 40, 1, 3, 1, 5)
    lengths = torch.tensor([40, 33, 0])
    with use_backend("triton"):
        y, state = ssd(**inputs, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            by_row = {name: t if name in ("A", "D", "dt_bias") else t[row : row + 1]
                      for name, t in inputs.items()}  # fmt: skip
            alone = {name: by_row[name][:, :length] for name in ("x", "dt", "B", "C", "dt_scale")}
            alone_y, alone_state = ssd(**by_row | alone)
            same(y[row : row + 1, :length], alone_y)
            same(state[row : row + 1], alone_state)


def test_small_decay_after_large_ones_keeps_its_digits(same) -> None:
    inputs = make(1, 32, 2, 3, 1, 4)
    for name in ("dt_scale", "dt_bias"):
        del inputs[name]
    inputs["dt"] = inputs["dt"].clone()
    inputs["dt"][:, :20] += 300
    inputs["dt"][:, 20:] -= 3
    y, state = ssd_triton(**inputs)
    expected_y, expected_state = ssd_ref(**wide(inputs))
    same(y[:, 24:], expected_y[:, 24:].float())
    same(state, expected_state.float())


def test_gradient_of_small_steps_keeps_its_digits(same, outputs_and_grads) -> None:
    """softplus far below zero, where log(1 + exp(v)) has lost the digits of exp(v)."""
    inputs = make(1, 17, 2, 3, 1, 4)
    inputs["dt"] = inputs["dt"] - 12
    check(inputs, same, outputs_and_grads)


@pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
def test_gradient_through_one_output(output: int, same) -> None:
    inputs = {name: t.detach().requires_grad_() for name, t in make(1, 34, 2, 3, 1, 4).items()}
    wanted = [inputs[name] for name in ("x", "dt", "A", "initial_state")]
    fast, expected = (
        torch.autograd.grad(op(**inputs)[output].square().sum(), wanted)
        for op in (ssd_triton, ssd_ref)
    )
    for grad, expected_grad in zip(fast, expected, strict=True):
        same(grad, expected_grad)


def test_only_some_inputs_need_a_gradient(same) -> None:
    inputs = make(1, 18, 2, 3, 1, 4)
    inputs["dt_bias"].requires_grad_()
    grads = [
        torch.autograd.grad(op(**inputs)[0].sum(), inputs["dt_bias"])[0]
        for op in (ssd_triton, ssd_ref)
    ]
    same(*grads)


def test_training_keeps_inputs_and_few_states(saved_elements) -> None:
    b, l, h, p, n = 1, 128, 2, 4, 4
    inputs = {name: t.detach().requires_grad_() for name, t in make(b, l, h, p, 1, n).items()}
    kept = saved_elements(lambda: ssd_triton(**inputs))
    segments = forward_form.plan(inputs["x"], inputs["B"], inputs["C"]).segments
    given = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4
             for t in inputs.values()}  # fmt: skip
    assert kept <= sum(given.values()) + (segments - 1) * b * h * (p * n + 1)


def test_the_ops_are_well_formed() -> None:
    """Schema, fakes and autograd, as torch.library sees them."""
    inputs = {name: t.detach().requires_grad_() for name, t in make(1, 3, 1, 2, 1, 3).items()}
    arguments = (*ScanInputs(**inputs), 0.0, float("inf"))
    torch.library.opcheck(torch.ops.remamba.ssd.default, arguments)


def test_compilers_see_one_op(same) -> None:
    inputs = make(1, 18, 2, 3, 1, 4)
    compiled = torch.compile(ssd, backend="eager", fullgraph=True)
    with use_backend("triton"):
        for fast, plain in zip(compiled(**inputs), ssd(**inputs), strict=True):
            same(fast, plain)


@pytest.mark.parametrize(("p", "n"), [(130, 3), (3, 260), (128, 256)], ids=str)
def test_large_states_run_the_torch_form(p: int, n: int, monkeypatch, same) -> None:
    monkeypatch.setattr(form, "forward", None)
    inputs = make(1, 5, 1, p, 1, n)
    same(ssd_triton(**inputs)[0], ssd_ref(**wide(inputs))[0].float())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_equals_reference_at_a_model_s_size(dtype, same, outputs_and_grads) -> None:
    """b2-l777-h24-p64-g1-n128: products on the tensor cores, several segments."""
    inputs = make(2, 777, 24, 64, 1, 128, dtype)
    inputs["dt"] = inputs["dt"] - 3
    check(inputs, same, outputs_and_grads, dtype)


@pytest.mark.gpu
def test_offsets_past_two_to_the_31(same) -> None:
    """b1-l1000000-h34-p64: more elements than 32 bits count; the end equals the end alone."""
    l, h = 1_000_000, 34
    inputs = make(1, l, h, 64, 1, 16, torch.bfloat16)
    assert inputs["x"].numel() > 2**31
    for name in ("initial_state", "dt_scale"):
        del inputs[name]
    inputs["A"] = inputs["A"] - 1
    y, state = ssd_triton(**inputs)
    end = {name: t[:, -512:] if name in ("x", "dt", "B", "C") else t for name, t in inputs.items()}
    end_y, end_state = ssd_triton(**end)
    same(y[:, -64:], end_y[:, -64:])
    same(state, end_state, torch.bfloat16)
