"""The ops at published sizes: their inputs, the work they cannot avoid, and their peers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.bench.ceilings import Work
from lab.bench.shapes import Shape
from remamba import ops
from remamba.ops import backend

CHUNK = 64
"""Of the Mamba-2 scan's products: short chunks need the fewest."""

Inputs = dict[str, Any]
Form = Callable[[Inputs], tuple[Tensor, ...]]
"""An op on its inputs: the output first."""


class Case(NamedTuple):
    """One op at one size."""

    op: str
    shape: str
    batch: int
    length: int
    """1 for a decode step."""
    backward: bool = False


GPU_CASES = (
    Case("selective_scan", "mamba-2.8b", 1, 6144, True),
    Case("selective_scan", "mamba-2.8b", 1, 65536),
    Case("selective_scan", "mamba-130m", 8, 2048, True),
    Case("causal_conv", "mamba-2.8b", 1, 6144, True),
    Case("ssd", "mamba2-2.7b", 1, 6144, True),
    Case("rms_norm", "mamba-2.8b", 1, 6144, True),
    Case("gated_rms_norm", "mamba2-2.7b", 1, 6144, True),
    Case("selective_state_update", "mamba-2.8b", 1, 1),
    Case("ssd_state_update", "mamba2-2.7b", 1, 1),
)
"""What is timed on a GPU unless other shapes are asked for."""

OPTIONS: dict[str, dict[str, Any]] = {
    "rms_norm": {"eps": 1e-5},
    "gated_rms_norm": {"groups": 1, "eps": 1e-5},
}


def ops_of(shape: Shape) -> tuple[str, ...]:
    """The ops of a shape's layers."""
    if shape.kind == "mamba":
        return ("selective_scan", "causal_conv", "rms_norm", "selective_state_update")
    return ("ssd", "causal_conv", "rms_norm", "gated_rms_norm", "ssd_state_update")


def is_step(op: str) -> bool:
    """True for a decode step: it has no length, and always a state."""
    return op.endswith("state_update")


def make_inputs(
    op: str,
    shape: Shape,
    rows: int,
    length: int,
    device: str,
    dtype: torch.dtype,
    *,
    with_state: bool,
) -> Inputs:
    """Random arguments of an op."""
    e, heads = 2 * shape.hidden_size, 2 * shape.hidden_size // 64
    n = shape.sizes["state_size"]
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=dtype)

    if op == "causal_conv":
        channels = e if shape.kind == "mamba" else e + 2 * n
        inputs = {
            "x": random(rows, length, channels),
            "weight": random(channels, 4),
            "bias": random(channels),
        }
        return {**inputs, "window": random(rows, 3, channels)} if with_state else inputs
    if op == "rms_norm":
        d = shape.hidden_size
        residual = random(rows, length, d, dtype=exact)
        return {"x": random(rows, length, d), "weight": random(d), "residual": residual}
    if op == "gated_rms_norm":
        return {"x": random(rows, length, e), "z": random(rows, length, e), "weight": random(e)}
    along = (rows,) if is_step(op) else (rows, length)
    if shape.kind == "mamba":
        inputs = {
            "x": random(*along, e),
            "dt": random(*along, e) - 4,
            "A": -F.softplus(random(e, n, dtype=exact)),
            "B": random(*along, n),
            "C": random(*along, n),
            "D": random(e, dtype=exact),
            "z": random(*along, e),
            "dt_bias": random(e, dtype=exact),
        }
        state: tuple[int, ...] = (rows, e, n)
    else:
        inputs = {
            "x": random(*along, heads, 64),
            "dt": random(*along, heads) - 4,
            "A": -F.softplus(random(heads, dtype=exact)),
            "B": random(*along, 1, n),
            "C": random(*along, 1, n),
            "D": random(heads, dtype=exact),
            "dt_bias": random(heads, dtype=exact),
        }
        state = (rows, heads, 64, n)
    if is_step(op):
        inputs["state"] = random(*state, dtype=exact)
    elif with_state:
        inputs["initial_state"] = random(*state, dtype=exact)
    return inputs


def own_form(op: str, name: str) -> Form:
    """One of our implementations."""
    function, options = getattr(ops, op), OPTIONS.get(op, {})

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        with backend.use_backend(name):
            if op == "gated_rms_norm":
                return (function(inputs["x"], inputs["z"], inputs["weight"], **options),)
            return function(**inputs, **options)

    return run


def work(op: str, inputs: Inputs, what: str) -> Work:
    """What forward, or backward alone, must read, write and compute.

    Each tensor is moved once; a backward reads the inputs and the output's gradient and writes the
    gradient of every input. A scan makes n exponentials a step and channel, and four more for
    softplus and the gate; its backward makes as many again. The Mamba-2 scan's products are those
    of the chunked form, the causal half of each chunk; its backward has twice as many.
    """
    factor = 2 if what == "backward" else 1
    x = inputs["x"]
    moved = sum(map(_bytes, inputs.values())) * factor + _bytes(x)
    if is_step(op):
        moved += _bytes(inputs["state"])
    if op == "rms_norm":
        # forward writes the sum too; backward reads the sum in place of its parts
        moved += _bytes(inputs["residual"]) if what == "forward" else -_bytes(x)
        return Work(moved)
    if op in ("causal_conv", "gated_rms_norm"):
        return Work(moved, 0, 2 * x.numel())
    if op in ("selective_scan", "selective_state_update"):
        return Work(moved, 0, (inputs["A"].shape[1] + 4) * x.numel())
    if is_step(op):
        return Work(moved)
    b, l, h, p = x.shape
    g, n = inputs["B"].shape[2:]
    states = 2 * h * p * n
    within = CHUNK // 2 * (g * n + h * p)
    return Work(moved, 2 * b * l * (states + within) * factor, 2 * b * l * h)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def peer_forms(op: str) -> dict[str, Callable[[Inputs], tuple[Inputs, Form]]]:
    """Installed peers of an op: name -> (our inputs -> inputs in the peer's layout, its form)."""
    peers: dict[str, Callable[[Inputs], tuple[Inputs, Form]]] = {}
    if op == "selective_scan" and find_spec("mamba_ssm") is not None:
        peers["mamba_ssm"] = _mamba_ssm_scan
    if op == "ssd" and find_spec("mamba_ssm") is not None:
        peers["mamba_ssm"] = _mamba_ssm_ssd
    if op == "causal_conv" and find_spec("causal_conv1d") is not None:
        peers["causal_conv1d"] = _causal_conv1d
    return peers


def _channels_first(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    return {
        name: tensor.mT.contiguous() if name in names else tensor for name, tensor in inputs.items()
    }


def _mamba_ssm_scan(inputs: Inputs) -> tuple[Inputs, Form]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(given: Inputs) -> tuple[Tensor, ...]:
        return selective_scan_fn(
            given["x"], given["dt"], given["A"], given["B"], given["C"], given["D"],
            z=given["z"], delta_bias=given["dt_bias"], delta_softplus=True, return_last_state=True,
        )  # fmt: skip

    return _channels_first(inputs, ("x", "dt", "B", "C", "z")), run


def _mamba_ssm_ssd(inputs: Inputs) -> tuple[Inputs, Form]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def run(given: Inputs) -> tuple[Tensor, ...]:
        return mamba_chunk_scan_combined(
            given["x"], given["dt"], given["A"], given["B"], given["C"], 256,
            D=given["D"], dt_bias=given["dt_bias"], dt_softplus=True, return_final_states=True,
        )  # fmt: skip

    return inputs, run


def _causal_conv1d(inputs: Inputs) -> tuple[Inputs, Form]:
    from causal_conv1d import causal_conv1d_fn

    def run(given: Inputs) -> tuple[Tensor, ...]:
        return (causal_conv1d_fn(given["x"], given["weight"], given["bias"], activation="silu"),)

    return _channels_first(inputs, ("x",)), run


def as_ours(op: str, output: Tensor) -> Tensor:
    """A peer's output in our layout."""
    return output if op == "ssd" else output.mT
