"""The convolution equals torch's own on padded data, and carries its window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from remamba.ops import causal_conv, use_backend


def make(b: int, l: int, e: int, w: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {"x": (b, l, e), "weight": (e, w), "bias": (e,), "window": (b, w - 1, e)}
    return {name: torch.randn(s, dtype=torch.float64).to(dtype) for name, s in shapes.items()}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    window: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Cross-correlation of torch, channels first, on the inputs behind their window."""
    w = weight.shape[1]
    if window is None:
        window = x.new_zeros(x.shape[0], w - 1, x.shape[2])
    padded = torch.cat([window, x], dim=1)
    y = F.conv1d(padded.mT, weight.unsqueeze(1), bias, groups=len(weight)).mT
    return F.silu(y) if silu else y, padded[:, x.shape[1] :]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("w", [1, 2, 4], ids=lambda w: f"e6-w{w}")
@pytest.mark.parametrize("l", [1, 2, 3, 63, 100], ids=lambda l: f"b2-l{l}")
def test_equals_reference(l, w, dtype, same, outputs_and_grads) -> None:
    inputs = make(2, l, 6, w, dtype)
    expected = outputs_and_grads(reference, inputs)
    same(outputs_and_grads(causal_conv, inputs), expected)
    with torch.no_grad():
        y, window = causal_conv(**inputs)
    same(y, expected["y"])
    same(window, expected["state"])


@pytest.mark.parametrize("missing", ["bias", "window"])
@pytest.mark.parametrize("l", [1, 20], ids=lambda l: f"b2-l{l}-e6-w4")
def test_equals_reference_without(missing: str, l: int, same, outputs_and_grads) -> None:
    inputs = make(2, l, 6, 4)
    del inputs[missing]
    same(outputs_and_grads(causal_conv, inputs), outputs_and_grads(reference, inputs))
    inputs = {name: t.float() for name, t in inputs.items()}
    same(causal_conv(**inputs, silu=False)[0], reference(**inputs, silu=False)[0])


def test_no_positions() -> None:
    inputs = make(2, 0, 6, 4)
    y, window = causal_conv(**inputs)
    assert y.shape == (2, 0, 6)
    assert torch.equal(window, inputs["window"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_strided_inputs(dtype: torch.dtype, same) -> None:
    inputs = make(2, 20, 6, 4, dtype)
    strided = inputs | {
        "x": torch.cat([inputs["x"]] * 2, dim=-1)[..., :6],
        "weight": inputs["weight"].t().contiguous().t(),
        "window": inputs["window"].mT.contiguous().mT,
    }
    for got, expected in zip(causal_conv(**strided), causal_conv(**inputs), strict=True):
        same(got, expected)


@pytest.mark.parametrize("cuts", [(1, 2), (3, 4), (10, 18)], ids=str)
def test_pieces_equal_whole(cuts: tuple[int, ...], same) -> None:
    inputs = make(2, 20, 6, 4)
    x, window = inputs.pop("x"), inputs.pop("window")
    whole, final = causal_conv(x, **inputs, window=window)
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 20), strict=True):
        y, window = causal_conv(x[:, start:stop], **inputs, window=window)
        pieces.append(y)
    same(torch.cat(pieces, dim=1), whole)
    same(window, final)


@pytest.mark.parametrize("l", [1, 9], ids=lambda l: f"b5-l{l}-e6-w4")
def test_rows_equal_each_alone(l: int, same) -> None:
    """A row shorter than the window keeps part of the old one; an empty row keeps it all."""
    inputs = make(5, l, 6, 4)
    lengths = torch.tensor([9, 7, 2, 1, 0]).clamp(max=l)
    y, window = causal_conv(**inputs, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = {name: inputs[name] for name in ("weight", "bias")}
        alone |= {"x": inputs["x"][[row], :length], "window": inputs["window"][[row]]}
        alone_y, alone_window = causal_conv(**alone)
        same(y[[row], :length], alone_y)
        same(window[[row]], alone_window)


def test_window_is_no_view_of_the_inputs() -> None:
    """A cache that keeps the window must not keep the sequence alive."""
    _, window = causal_conv(**make(1, 100, 6, 4))
    assert window.untyped_storage().nbytes() == window.nbytes


def test_narrow_inputs_and_autocast(same) -> None:
    inputs = make(2, 20, 6, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, window = causal_conv(**inputs)
    same(y, reference(**inputs)[0])
    assert window.dtype == torch.float32
    narrow = {name: t.bfloat16() for name, t in inputs.items()}
    y, window = causal_conv(**narrow)
    assert y.dtype == window.dtype == torch.bfloat16
    same(y, reference(**{name: t.float() for name, t in narrow.items()})[0].bfloat16())
    # the window given in another dtype than x follows x
    assert causal_conv(**narrow | {"window": inputs["window"]})[1].dtype == torch.bfloat16


@pytest.mark.parametrize("l", [1, 3], ids=lambda l: f"b2-l{l}-e2-w3")
def test_gradcheck(l: int) -> None:
    inputs = {name: t.requires_grad_() for name, t in make(2, l, 2, 3).items()}
    names, lengths = list(inputs), torch.tensor([l, 1])

    def op(*values: Tensor) -> tuple[Tensor, Tensor]:
        return causal_conv(**dict(zip(names, values, strict=True)), lengths=lengths)

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

KERNEL_CASES = {
    "b2-l1-e6-w4": ((2, 1, 6, 4), {}),
    "b2-l2-e6-w4-lengths": ((2, 2, 6, 4), {"lengths": [2, 1]}),
    "b2-l19-e66-w4-lengths": ((2, 19, 66, 4), {"lengths": [17, 0]}),
    "b1-l17-e5-w2-linear": ((1, 17, 5, 2), {"silu": False}),
    "b2-l9-e5-w4-nobias": ((2, 9, 5, 4), {"without": "bias"}),
    "b2-l9-e5-w4-nowindow-lengths": ((2, 9, 5, 4), {"without": "window", "lengths": [9, 1]}),
    "b1-l18-e9-w4-bf16": ((1, 18, 9, 4), {"dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("case", KERNEL_CASES)
def test_kernel_equals_torch(case: str, same, outputs_and_grads) -> None:
    """Outputs, window and gradients; x, as in the mixers, is half of a wider tensor."""
    pytest.importorskip("triton")
    shape, options = KERNEL_CASES[case]
    inputs = {name: t.to(DEVICE) for name, t in make(*shape).items()}
    inputs = {name: t.to(options.get("dtype", torch.float32)) for name, t in inputs.items()}
    inputs.pop(options.get("without"), None)
    lengths = options.get("lengths")
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)

    def op(x: Tensor, **rest: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
        return causal_conv(half, **rest, lengths=lengths, silu=options.get("silu", True))

    results = {}
    for backend in ("torch", "triton"):
        with use_backend(backend):
            results[backend] = outputs_and_grads(op, inputs)
            with torch.no_grad():
                y, window = op(**inputs)
        same(y, results[backend]["y"])
        same(window, results[backend]["state"])
    same(results["triton"], results["torch"])


def test_kernel_takes_strange_strides(same) -> None:
    pytest.importorskip("triton")
    inputs = {name: t.to(DEVICE) for name, t in make(2, 20, 6, 4, torch.float32).items()}
    strided = inputs | {
        "x": inputs["x"].mT.contiguous().mT,
        "weight": inputs["weight"].t().contiguous().t(),
        "bias": inputs["bias"].repeat_interleave(2)[::2],
        "window": inputs["window"].double().mT.contiguous().mT,
    }
    with use_backend("triton"):
        got = causal_conv(**strided)
    for actual, expected in zip(got, causal_conv(**inputs), strict=True):
        same(actual, expected)


def test_kernel_is_known_to_torch_library() -> None:
    pytest.importorskip("triton")
    import remamba.ops.convolution.triton  # noqa: F401

    inputs = {n: t.to(DEVICE).requires_grad_() for n, t in make(2, 3, 6, 4, torch.float32).items()}
    torch.library.opcheck(
        torch.ops.remamba.causal_conv.default,
        (inputs["x"], inputs["weight"], inputs["bias"], None, inputs["window"], True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
