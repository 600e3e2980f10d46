"""The selective scan in CUDA C++ (selective_scan.cu): one pass, every exponential once."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import torch
from torch import Tensor

from remamba.ops import nvrtc
from remamba.ops.backend import limited
from remamba.ops.device import processors
from remamba.ops.recording import with_gradient
from remamba.ops.scan_inputs import ScanInputs

SOURCE = Path(__file__).with_name("selective_scan.cu")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STATES = (8, 16, 32)
"""State sizes n that the kernels are written for."""
PLANS = (
    *((warps, 8) for warps in (12, 10, 8, 6, 4, 2)),
    *((warps, 16) for warps in (20, 16, 12, 8, 4)),
)
"""Warps a thread block may have, and lanes among which a channel's states are dealt out."""
INSTRUCTIONS = {8: 26, 16: 15}
"""Of a warp's step, about."""

ROWS = ("x", "dt", "z", "B", "C", "dy")
MOST_ROWS = 65_535
"""Of a batch: a row is a grid's second axis."""

UNALIGNED = "rows that do not begin every 16 bytes"

OPTIONAL = ("z", "D", "bias", "scale")
POINTERS = (
    *ROWS, "A", "D", "bias", "scale", "first", "y", "last", "starts", "dlast",
    "dx", "ddt", "dz", "dA", "dD", "dbias", "dfirst", "dBC",
)  # fmt: skip
ARGUMENTS = struct.Struct(f"{len(POINTERS)}Q{2 * len(ROWS)}q2i")
"""`struct Arguments` of the source: POINTERS, the strides of ROWS, length and channels."""


def needs_gradient(inputs: ScanInputs) -> bool:
    """Whether what the backward kernel reads must be kept."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def fits(inputs: ScanInputs) -> str:
    """Why the kernels cannot take these inputs.

    They read rows in 16 bytes at a time, of one dtype, and give no gradient of dt_scale.
    """
    x, dt, A, B, C, D, z, dt_bias, dt_scale, _ = inputs
    dtype = x.dtype
    if dtype not in TYPES:
        return "a dtype that is not float32, bfloat16 or float16"
    if A.shape[1] not in STATES:
        return f"a state size that is none of {STATES}"
    if x.shape[0] > MOST_ROWS:
        return f"more than {MOST_ROWS} rows"
    parameters = {t.dtype for t in (D, dt_bias) if t is not None}
    if len(parameters) > 1 or not parameters <= {torch.float32, dtype}:
        return "D and dt_bias of other dtypes"
    if dt_scale is not None and dt_scale.requires_grad and torch.is_grad_enabled():
        return "a gradient of dt_scale"
    values = 16 // dtype.itemsize
    is_compiling = torch.compiler.is_compiling()
    for t in (x, dt, B, C, z):
        if t is None:
            continue
        row, step, value = t.stride()
        if t.dtype != dtype:
            return "rows of several dtypes"
        if value != 1 or step % values or (row % values and t.shape[0] > 1):
            return UNALIGNED
        # a compiler's tensors have no address: the ops look again
        if not is_compiling and t.data_ptr() % 16:
            return UNALIGNED
    return UNALIGNED if x.shape[2] % values else ""


@limited(fits)
def selective_scan_cuda(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """selective_scan, for l > 0."""
    needs_grad = needs_gradient(inputs)
    x, dt, A, B, C, D, z, dt_bias, dt_scale, initial_state = inputs
    dense = ScanInputs(
        x, dt, A.float().contiguous(), B, C, None if D is None else D.contiguous(), z,
        None if dt_bias is None else dt_bias.contiguous(),
        None if dt_scale is None else dt_scale.float().contiguous(),
        None if initial_state is None else initial_state.float().contiguous(),
    )  # fmt: skip
    if needs_grad or torch.compiler.is_compiling():
        y, last, _ = _recorded(*dense, needs_grad)
    else:
        y, last, _ = _forward(dense, needs_grad)
    return y, last


@functools.cache
def plan(rows: int, channels: int, n: int, processors: int) -> tuple[int, int]:
    """Warps of a thread block and lanes of a channel for the forward kernel.

    A multiprocessor has 4 schedulers, each issuing an instruction a cycle if one of its warps is
    ready: the busiest scheduler's k warps are taken to keep it busy k / (k + 2) of the time. Of
    equal plans the one with more warps is better, as a block's warps share its B and C.
    """

    def cost(warps: int, lanes: int) -> float:
        blocks = rows * -(-channels // (32 // lanes * warps))
        busiest = -(-warps * -(-blocks // processors) // 4)
        return INSTRUCTIONS[lanes] * (busiest + 2)

    allowed = [(warps, lanes) for warps, lanes in PLANS if lanes <= n]
    return min(allowed, key=lambda way: (cost(*way), -way[0]))


@functools.cache
def plan_backward(rows: int, channels: int, processors: int) -> int:
    """Warps of a thread block for the backward kernel, whose channels have 8 lanes."""

    def busiest(warps: int) -> int:
        return warps * -(-rows * -(-channels // (4 * warps)) // processors)

    allowed = [warps for warps, lanes in PLANS if lanes == 8]
    return min(allowed, key=lambda warps: (-(-busiest(warps) // 4), busiest(warps), -warps))


def way(name: str, b: int, e: int, n: int, device: torch.device) -> tuple[int, int, int]:
    """Warps a block, lanes a channel, and blocks for the channels of one row."""
    if name == "scan_forward":
        warps, lanes = plan(b, e, n, processors(device))
    else:
        warps, lanes = plan_backward(b, e, processors(device)), 8
    return warps, lanes, -(-e // (32 // lanes * warps))


def defines_of(
    n: int, dtype: torch.dtype, absent: frozenset[str], parameters: torch.dtype, warps: int,
    lanes: int,
) -> dict[str, int]:  # fmt: skip
    """What the source is compiled with for these inputs."""
    return {
        "TYPE": TYPES[dtype], "N": n, "LANES": lanes, "WARPS": warps,
        "TILE": kept_every(dtype) * lanes // 8, "KEEP": kept_every(dtype),
        **{f"HAS_{name.upper()}": int(name not in absent) for name in OPTIONAL},
        "PARAM": TYPES[parameters],
    }  # fmt: skip


def kept_every(dtype: torch.dtype) -> int:
    """Steps between the states that training keeps: a tile of the backward kernel."""
    return 32 if dtype.itemsize == 2 else 16


def shared_bytes(name: str, defines: dict[str, int], size: int) -> int:
    """Bytes of `struct ForwardShared` or `struct BackwardShared`; size: bytes a value."""
    warps, lanes, tile, n = (defines[name] for name in ("WARPS", "LANES", "TILE", "N"))
    rows = tile * (32 // lanes) * warps
    inputs = size * (2 * rows + (rows if defines["HAS_Z"] else 8) + 2 * tile * n)
    pairs = tile * 2 * n * 4
    if name == "scan_forward":
        return 5 * inputs + 2 * pairs + 2 * warps * (32 // lanes) * (lanes + 2) * 8
    inputs += size * (rows + (rows if defines["HAS_Z"] else 8))
    kept = (tile // lanes) * 32 * 4  # a float a lane and block of steps
    kept *= warps * (n // lanes) + (warps if defines["HAS_Z"] else 1)
    sums = 2 * warps * lanes * 2 * n * 4
    return 2 * inputs + pairs + warps * 4 * (tile + 1) * 16 + kept + sums + 32  # and 4 barriers


def arguments_of(tensors: dict[str, Tensor | None]) -> bytes:
    """The kernels' parameter."""
    x = tensors["x"]
    assert x is not None
    values = [0 if t is None else t.data_ptr() for t in map(tensors.get, POINTERS)]
    for t in map(tensors.get, ROWS):
        values += (0, 0) if t is None else t.stride()[:2]
    return ARGUMENTS.pack(*values, *x.shape[1:])


@functools.lru_cache(maxsize=1024)
def _kernel(
    name: str, b: int, e: int, n: int, dtype: torch.dtype, absent: frozenset[str],
    parameters: torch.dtype, device: torch.device,
) -> tuple[nvrtc.Kernel, tuple[int, int]]:  # fmt: skip
    """A kernel for such inputs, compiled, and its grid."""
    warps, lanes, blocks = way(name, b, e, n, device)
    defines = defines_of(n, dtype, absent, parameters, warps, lanes)
    shared = shared_bytes(name, defines, dtype.itemsize)
    items = tuple(defines.items())
    return nvrtc.load(SOURCE, name, items, 32 * warps, shared, device.index), (blocks, b)


def kind_of(tensors: dict[str, Tensor | None]) -> tuple:
    """What a kernel is chosen by, as `_kernel` takes it."""
    x, A = tensors["x"], tensors["A"]
    assert x is not None and A is not None
    absent = frozenset(name for name in OPTIONAL if tensors[name] is None)
    parameter = tensors["D"] if tensors["D"] is not None else tensors["bias"]
    parameters = torch.float32 if parameter is None else parameter.dtype
    return x.shape[0], x.shape[2], A.shape[1], x.dtype, absent, parameters, x.device


def _launch(name: str, tensors: dict[str, Tensor | None]) -> None:
    kind = kind_of(tensors)
    kernel, grid = _kernel(name, *kind)
    kernel(grid, arguments_of(tensors), kind[-1].index)


def _named(inputs: ScanInputs, **others: Tensor | None) -> dict[str, Tensor | None]:
    """The tensors under the names that POINTERS gives them."""
    x, dt, A, B, C, D, z, dt_bias, dt_scale, first = inputs
    return {
        "x": x, "dt": dt, "z": z, "B": B, "C": C, "A": A, "D": D, "bias": dt_bias,
        "scale": dt_scale, "first": first, **others,
    }  # fmt: skip


def _forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, A = inputs.x, inputs.A
    b, l, e = x.shape
    n = A.shape[1]
    y = torch.empty((b, l, e), dtype=x.dtype, device=x.device)
    tiles = -(-l // kept_every(x.dtype)) if save else 0
    last, starts = A.new_empty((b, e, n)), A.new_empty((b, tiles, e, n))
    tensors = _named(inputs, y=y, last=last, starts=starts if save else None)
    _launch("scan_forward", tensors)
    return y, last, starts


def _aligned(t):
    """A copy of t where the kernels could not read it 16 bytes at a time from its start."""
    return (
        t if t is None or t.data_ptr() % 16 == 0 else t.clone(memory_format=torch.contiguous_format)
    )


def _aligned_inputs(inputs: ScanInputs) -> ScanInputs:
    x, dt, A, B, C, D, z, *others = inputs
    x, dt, B, C, z = map(_aligned, (x, dt, B, C, z))
    return ScanInputs(x, dt, A, B, C, D, z, *others)


def _aligned_forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, l, e), the final state (b, e, n) and, for the gradient, the state before each tile."""
    return _forward(_aligned_inputs(inputs), save)


def _fake(inputs, save):
    x, (b, l, e), n = inputs.x, inputs.x.shape, inputs.A.shape[1]
    tiles = -(-l // kept_every(x.dtype)) if save else 0
    return (
        x.new_empty((b, l, e)),
        x.new_empty((b, e, n), dtype=torch.float32),
        x.new_empty((b, tiles, e, n), dtype=torch.float32),
    )


def _backward(
    inputs: ScanInputs, y: Tensor, starts: Tensor, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B and C (b, l, 2 n), D, z, dt_bias and the initial state.

    All but those of x, dt and z are float32; that of an absent z is empty. The initial state is
    not needed: it is the first of `starts`.
    """
    inputs = _aligned_inputs(inputs)
    x, z, n = inputs.x, inputs.z, inputs.A.shape[1]
    b, l, e = x.shape
    dx, ddt = (torch.empty((b, l, e), dtype=x.dtype, device=x.device) for _ in range(2))
    dz = torch.empty((b, l, e) if z is not None else (0,), dtype=x.dtype, device=x.device)
    dA, dfirst = (torch.empty((b, e, n), dtype=torch.float32, device=x.device) for _ in range(2))
    dD, dbias = (torch.empty((b, e), dtype=torch.float32, device=x.device) for _ in range(2))
    dBC = torch.empty(
        (b, way("scan_backward", b, e, n, x.device)[2], l, 2 * n),
        dtype=torch.float32,
        device=x.device,
    )
    tensors = _named(
        inputs, dy=_aligned(dy), y=y, starts=starts, dlast=dlast, dx=dx, ddt=ddt, dz=dz,
        dA=dA, dD=dD, dbias=dbias, dfirst=dfirst, dBC=dBC,
    )  # fmt: skip
    _launch("scan_backward", tensors)
    dA, dD, dbias = (t.sum(0) if b > 1 else t[0] for t in (dA, dD, dbias))
    return dx, ddt, dA, dBC.sum(1), dD, dz, dbias, dfirst


def _fake_backward(inputs, y, starts, dy, dlast):
    x, (b, l, e), n = inputs.x, inputs.x.shape, inputs.A.shape[1]
    rows, channels = x.new_empty((b, l, e)), x.new_empty((e,), dtype=torch.float32)
    return (
        rows, rows.clone(), x.new_empty((e, n), dtype=torch.float32),
        x.new_empty((b, l, 2 * n), dtype=torch.float32), channels,
        rows.clone() if inputs.z is not None else x.new_empty((0,)), channels.clone(),
        x.new_empty((b, e, n), dtype=torch.float32),
    )  # fmt: skip


def _save(ctx, inputs, output):
    y, _, starts = output  # starts[:, 0] is the initial state
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(starts)
    # keeping y takes no memory of its own: the projection behind the scan keeps it as its input
    ctx.save_for_backward(*inputs[:9], y, starts)


def _gradients(ctx, backward, dy, dlast, _):
    *given, y, starts = ctx.saved_tensors
    inputs = ScanInputs(*given)
    x, B, D, dt_bias = inputs.x, inputs.B, inputs.D, inputs.dt_bias
    dy = (
        torch.zeros_like(x, memory_format=torch.contiguous_format)
        if dy is None
        else dy.contiguous()
    )
    if dlast is not None:
        dlast = dlast.float().contiguous()
    dx, ddt, dA, dBC, dD, dz, dbias, dfirst = backward(*inputs, y, starts, dy, dlast)
    b, l, n = B.shape
    # the kernel's order has the groups of states last
    both = x.new_empty((b, l, 2, 8, n // 8))
    dB, dC = both.copy_(dBC.view(b, l, 2, n // 8, 8).mT).flatten(3).unbind(2)
    wants = ctx.needs_input_grad
    return (
        dx, ddt, dA, dB, dC,
        dD.to(D.dtype) if D is not None and wants[5] else None,
        dz if wants[6] else None,
        dbias.to(dt_bias.dtype) if dt_bias is not None and wants[7] else None,
        None,
        dfirst if wants[9] else None,
        None,
    )  # fmt: skip


_recorded = with_gradient(
    "remamba::selective_scan_cuda", _aligned_forward, _backward,
    fake=_fake, fake_backward=_fake_backward, save=_save, gradients=_gradients,
)  # fmt: skip
