"""A decode step is the scan at one position; step by step it is the scan."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from remamba.ops import (
    selective_scan_ref,
    selective_state_update,
    ssd_ref,
    ssd_state_update,
    use_backend,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALONG = {"x", "dt", "B", "C", "z", "dt_scale"}
"""Inputs that a step takes at one position."""


def make_selective(b: int, l: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return make(
        dtype, x=(b, l, 6), dt=(b, l, 6), A=(6, 4), B=(b, l, 4), C=(b, l, 4), D=(6,), z=(b, l, 6),
        dt_bias=(6,), dt_scale=(b, l), state=(b, 6, 4),
    )  # fmt: skip


def make_ssd(b: int, l: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return make(
        dtype, x=(b, l, 4, 3), dt=(b, l, 4), A=(4,), B=(b, l, 2, 5), C=(b, l, 2, 5), D=(4,),
        dt_bias=(4,), dt_scale=(b, l), state=(b, 4, 3, 5),
    )  # fmt: skip


def make(dtype: torch.dtype, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].abs()
    inputs["dt_scale"] = inputs["dt_scale"].sigmoid()
    return {name: t.to(dtype) for name, t in inputs.items()}


Step = Callable[..., tuple[Tensor, Tensor]]
CASES = [
    pytest.param(selective_state_update, selective_scan_ref, make_selective, id="selective-e6-n4"),
    pytest.param(ssd_state_update, ssd_ref, make_ssd, id="ssd-h4-p3-g2-n5"),
]


def scan_and_steps(step: Step, scan: Step, inputs: dict[str, Tensor], **options):
    """(y, state) of the scan, then of the step taken along it."""
    initial = {name: t for name, t in inputs.items() if name != "state"}
    expected = scan(**initial, initial_state=inputs["state"], **options)
    state, outputs = inputs["state"], []
    for t in range(inputs["x"].shape[1]):
        here = {name: v[:, t] if name in ALONG else v for name, v in inputs.items()}
        y, state = step(**here | {"state": state}, **options)
        outputs.append(y)
    return expected, (torch.stack(outputs, dim=1), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("b", [1, 3], ids=lambda b: f"b{b}-l5")
@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_steps_equal_scan(step, scan, make, b: int, dtype: torch.dtype, same) -> None:
    (y, state), (step_y, step_state) = scan_and_steps(step, scan, make(b, 5, dtype))
    same(step_y, y)
    same(step_state, state)


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias", "dt_scale"])
@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_steps_equal_scan_without(step, scan, make, missing: str, same) -> None:
    inputs = {name: t for name, t in make(2, 3).items() if name != missing}
    (y, state), (step_y, step_state) = scan_and_steps(step, scan, inputs)
    same(step_y, y)
    same(step_state, state)


def test_dt_limit(same) -> None:
    (y, state), (step_y, step_state) = scan_and_steps(
        ssd_state_update, ssd_ref, make_ssd(2, 3), dt_limit=(0.5, 1.0)
    )
    same(step_y, y)
    same(step_state, state)


def one_step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t[:, 0] if name in ALONG else t for name, t in inputs.items()}


@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_strided_inputs_and_state_left_as_it_is(step, scan, make, same) -> None:
    inputs = one_step(make(2, 2))
    strided = {
        name: torch.cat([t] * 2, dim=-1)[..., : t.shape[-1]] if t.dim() > 1 else t
        for name, t in inputs.items()
    }
    strided["state"] = inputs["state"].mT.contiguous().mT
    before = inputs["state"].clone()
    y, state = step(**inputs)
    assert torch.equal(inputs["state"], before)
    strided_y, strided_state = step(**strided)
    assert torch.equal(strided["state"], before)
    same(strided_y, y)
    same(strided_state, state)


@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_scale_zero_leaves_the_state(step, scan, make) -> None:
    inputs = one_step(make(2, 1))
    inputs["dt_scale"] = torch.zeros_like(inputs["dt_scale"])
    assert torch.equal(step(**inputs)[1], inputs["state"])


@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_narrow_inputs_and_autocast(step, scan, make, same) -> None:
    inputs = one_step(make(2, 1, torch.float32))
    y, state = step(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast_y, cast_state = step(**inputs)
    same(cast_y, y)
    same(cast_state, state)
    narrow = {name: t if name == "state" else t.bfloat16() for name, t in inputs.items()}
    y, state = step(**narrow)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    wide_y, wide_state = step(**{name: t.float() for name, t in narrow.items()})
    same(y, wide_y.bfloat16())
    same(state, wide_state)


@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_gradcheck(step, scan, make) -> None:
    inputs = {name: t.requires_grad_() for name, t in one_step(make(1, 1)).items()}
    names = list(inputs)

    def op(*values: Tensor) -> tuple[Tensor, Tensor]:
        return step(**dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(op, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("missing", [None, "D", "z", "dt_bias", "dt_scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_kernel_equals_torch(step, scan, make, dtype: torch.dtype, missing: str | None, same):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = {name: t.to(device) for name, t in one_step(make(3, 1, dtype)).items()}
    inputs = {name: t for name, t in inputs.items() if name != missing}
    inputs["state"] = inputs["state"].float().mT.contiguous().mT
    options = {"dt_limit": (0.2, 1.0)} if step is ssd_state_update else {}
    before = inputs["state"].clone()
    with use_backend("torch"):
        expected = step(**inputs, **options)
    with use_backend("triton"):
        found = step(**inputs, **options)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        same(value, wanted)
    assert torch.equal(inputs["state"], before)


@pytest.mark.parametrize(("step", "scan", "make"), CASES)
def test_triton_leaves_gradients_and_wide_states_to_torch(step, scan, make, same) -> None:
    inputs = {k: t.to(DEVICE) for k, t in one_step(make(1, 1, torch.float32)).items()}
    inputs["x"].requires_grad_()
    with use_backend("triton"):
        step(**inputs)[0].sum().backward()
        assert inputs["x"].grad is not None
        wide = {name: t.detach().double() for name, t in inputs.items()}
        y, state = step(**wide)
    assert y.dtype == state.dtype == torch.float64
    same(y.float(), step(**inputs)[0])
