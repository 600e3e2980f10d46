"""The Triton form of the selective scan equals the reference: outputs, state, every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from remamba.ops import selective_scan, selective_scan_ref, use_backend
from remamba.ops.backend import in_form
from remamba.ops.scan import triton as form
from remamba.ops.scan import triton_backward as backward
from remamba.ops.scan_inputs import ScanInputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
selective_scan_triton = in_form(selective_scan, "triton")
OPTIONAL = ("D", "z", "dt_bias", "dt_scale", "initial_state")


def make(b: int, l: int, e: int, n: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every input there is; x and z are halves of one tensor, B and C slices, as mixers pass."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE)

    x, z = randn(b, l, 2 * e).to(dtype).chunk(2, dim=-1)
    _, B, C = randn(b, l, 3 + 2 * n).to(dtype).split([3, n, n], dim=-1)
    return {
        "x": x,
        "dt": (2 * randn(b, l, e) - 1).to(dtype),
        "A": -4 * torch.rand(e, n, device=DEVICE),
        "B": B,
        "C": C,
        "D": randn(e).to(dtype),
        "z": z,
        "dt_bias": randn(e).to(dtype),
        "dt_scale": torch.rand(b, l, device=DEVICE),
        "initial_state": randn(b, e, n),
    }


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch):
    """`chunks(length)`: the kernels cut the sequence into chunks of that many positions."""

    def cut(length: int) -> None:
        monkeypatch.setattr(form, "chunk_length", lambda *sizes: length)

    return cut


def check(inputs: dict[str, Tensor], same, outputs_and_grads, dtype=None) -> None:
    fast = outputs_and_grads(selective_scan_triton, inputs)
    wide = outputs_and_grads(selective_scan_ref, {name: t.double() for name, t in inputs.items()})
    assert fast["state"].dtype == torch.float32
    assert fast["y"].dtype == inputs["x"].dtype
    assert all(fast[f"d{name}"].dtype == t.dtype for name, t in inputs.items())
    same(fast["state"], wide["state"].float())
    same(fast, {name: t.to(fast[name].dtype) for name, t in wide.items()}, dtype)


@pytest.mark.parametrize(
    ("b", "l", "e", "n", "chunk"),
    [
        (1, 1, 3, 4, 8),
        (2, 2, 3, 1, 8),
        (1, 63, 3, 1, 24),
        (1, 100, 2, 1, 104),
        (2, 9, 67, 2, 8),
        (1, 9, 3, 16, 8),
        (1, 3, 33, 17, 8),
    ],
    ids=lambda size: str(size),
)
def test_equals_reference(b, l, e, n, chunk, chunks, same, outputs_and_grads) -> None:
    """Chunks that end before, at and after the sequence; channels of one and of two programs."""
    chunks(chunk)
    check(make(b, l, e, n), same, outputs_and_grads)


def test_backward_in_pieces(chunks, same, outputs_and_grads, monkeypatch) -> None:
    """Two chunks at once, so that the states between the steps need little memory."""
    chunks(8)
    monkeypatch.setattr(backward, "SCRATCH", 2 * 2 * 5 * 2)
    check(make(2, 37, 5, 2), same, outputs_and_grads)


@pytest.mark.parametrize("missing", [*zip(OPTIONAL, strict=True), OPTIONAL], ids="-".join)
def test_equals_reference_without(missing, chunks, same, outputs_and_grads) -> None:
    chunks(8)
    inputs = {name: t for name, t in make(1, 9, 5, 2).items() if name not in missing}
    check(inputs, same, outputs_and_grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_narrow_inputs_accumulate_in_float32(dtype, chunks, same, outputs_and_grads) -> None:
    chunks(16)
    check(make(1, 19, 5, 2, dtype), same, outputs_and_grads, dtype)


def test_lengths_leave_the_state_and_the_other_rows_alone(chunks, same) -> None:
    """What lies at pads, even NaN in B and C, reaches neither the row's state nor the next row."""
    chunks(8)
    inputs = make(2, 11, 5, 2)
    lengths = torch.tensor([11, 5], device=DEVICE)
    with use_backend("triton"):
        y, state = selective_scan(**inputs, lengths=lengths)
    assert y.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone = {
            name: t if name in ("A", "D", "dt_bias") else t[row : row + 1]
            for name, t in inputs.items()
        }
        for name in ("x", "dt", "B", "C", "z", "dt_scale"):
            alone[name] = alone[name][:, :length]
        y_alone, state_alone = selective_scan_ref(**alone)
        same(y[row : row + 1, :length], y_alone)
        same(state[row : row + 1], state_alone)
    inputs["B"][1] = inputs["C"][1] = float("nan")
    with use_backend("triton"):
        again, _ = selective_scan(**inputs, lengths=lengths)
    assert torch.equal(again[0], y[0])


def test_pieces_equal_whole(chunks, same) -> None:
    chunks(16)
    inputs = make(2, 37, 5, 2)
    whole, final = selective_scan_triton(**inputs)
    pieces, state = [], inputs["initial_state"]
    for piece in (slice(0, 16), slice(16, 17), slice(17, 37)):
        cut = dict(inputs, initial_state=state)
        for name in ("x", "dt", "B", "C", "z", "dt_scale"):
            cut[name] = cut[name][:, piece]
        y, state = selective_scan_triton(**cut)
        pieces.append(y)
    same(torch.cat(pieces, dim=1), whole)
    same(state, final)


@pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
def test_gradient_of_some_inputs_through_one_output(output, chunks, same) -> None:
    """The other output is then not given to backward at all."""
    chunks(8)
    inputs = make(1, 9, 5, 2)
    grads = []
    for op in (selective_scan_triton, selective_scan_ref):
        leaves = {name: inputs[name].clone().requires_grad_() for name in ("dt", "A", "dt_scale")}
        loss = op(**inputs | leaves)[output].square().sum()
        grads.append(dict(zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True)))
    same(*grads)


@pytest.mark.parametrize("dt", [-30.0, -9.0, -2.1, -2.0, 0.0, 19.9, 20.1, 500.0])
def test_steps_of_every_size(dt, same, outputs_and_grads) -> None:
    """softplus and its derivative from e^dt to dt and 1."""
    inputs = make(1, 2, 5, 2)
    inputs["dt"] = torch.full_like(inputs["dt"], dt) + torch.arange(5, device=DEVICE) / 64
    # from a state of zero, so that all there is grows with the step
    check({name: inputs[name] for name in ("x", "dt", "A", "B", "C")}, same, outputs_and_grads)


def test_inputs_that_the_kernels_cannot_take_go_to_torch(same) -> None:
    inputs = make(1, 3, 2, 2)
    assert form.fits(ScanInputs(**inputs)) == ""
    for refused in ({n: t.double() for n, t in inputs.items()}, make(1, 3, 2, 65)):
        assert form.fits(ScanInputs(**refused))
        same(selective_scan_triton(**refused)[0], selective_scan_ref(**refused)[0])


def test_chunks_fill_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "processors", lambda _: 132)
    device = torch.device("cuda")
    slots = 132 * form.PROGRAMS
    for b, l, e in ((1, 6144, 5120), (8, 2048, 1536), (1, 65536, 5120), (1, 1_000_000, 64)):
        length = form.chunk_length(b, l, e, device)
        chunks = -(-l // length)
        programs = b * e // form.CHANNELS * chunks
        assert length % form.SPAN == 0
        assert form.SHORTEST <= length <= form.LONGEST
        # the last wave is at least half full
        assert programs / (slots * -(-programs // slots)) > 0.5
    # channels enough: one pass, however long
    assert form.chunk_length(32, 5000, 5120, device) == 5000
    assert form.chunk_length(1, 3, 64, device) == form.SHORTEST


def test_compilers_and_autograd_see_an_op() -> None:
    inputs = ScanInputs(**{k: t.requires_grad_() for k, t in make(1, 3, 5, 2).items()})
    seen = torch.ops.remamba.selective_scan_triton.default
    torch.library.opcheck(seen, (*inputs, 8))
    bare = [*inputs[:5], *[None] * 5]
    torch.library.opcheck(seen, (*bare, 8), test_utils="test_faketensor")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_real_sizes(dtype, same, outputs_and_grads) -> None:
    """As long as many chunks of the kernels' own choice, and twice the same bits."""
    inputs = make(2, 1021, 200, 16, dtype)
    check(inputs, same, outputs_and_grads, dtype)
    first, again = (outputs_and_grads(selective_scan_triton, inputs) for _ in range(2))
    assert all(torch.equal(first[name], t) for name, t in again.items())


@pytest.mark.gpu
def test_more_elements_than_32_bits_address(same) -> None:
    """The last row of a batch of 2^31 elements and more equals the row alone."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs a GPU with 60 GiB")
    b, l, e, n = 5, 1_000_000, 512, 4
    inputs = make(1, l, e, n, torch.bfloat16)
    shared = ("A", "D", "dt_bias")
    batch = {name: t if name in shared else t.expand(b, *t.shape[1:]) for name, t in inputs.items()}
    batch["x"] = batch["x"].contiguous()
    y, state = selective_scan_triton(**batch)
    y_alone, state_alone = selective_scan_triton(**inputs)
    same(y[-1:, -1000:], y_alone[:, -1000:])
    same(state[-1:], state_alone)
