"""Very long prompts: the time, the memory, and whether the result is still right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lab.bench.check import LIMITS, judge, relative_error, use_states
from lab.bench.measure import (
    check_counts,
    is_cuda,
    prepare,
    progress,
    take_turns,
)
from lab.bench.op_cases import Inputs, make_inputs
from lab.bench.passes import prefill, random_ids
from lab.bench.report import as_markdown, begin, figure, keep, result_paths, show_table
from lab.bench.settings import LongArgs
from lab.bench.shapes import SHAPES, Shape, build, check_names
from remamba import ops
from remamba.configuration_remamba import CompressionConfig
from remamba.errors import InputError
from remamba.modeling_remamba import ReMambaModel
from remamba.ops import use_backend

EQUAL = 1e-5
"""Relative error, in float32, up to which pieces and kernels count as the torch form's equals."""
BLOCK = HEAD_DIM = 64
"""Channels of a block that the torch form computes beside a whole op: one head of Mamba-2."""
OPS = (("selective_scan", "mamba"), ("ssd", "mamba2"), ("causal_conv", "mamba"))
# the axis of the channels, or of the heads, of the tensors that have one
AXES = {
    "selective_scan": {"x": 2, "dt": 2, "z": 2, "A": 0, "D": 0, "dt_bias": 0},
    "ssd": {"x": 2, "dt": 2, "A": 0, "D": 0, "dt_bias": 0},
    "causal_conv": {"x": 2, "weight": 0, "bias": 0},
}
OUTPUT_AXES = {
    "selective_scan": {"y": 2, "state": 1},
    "ssd": {"y": 2, "state": 1},
    "causal_conv": {"y": 2, "state": 2},
}
Compute = Callable[[str, Inputs, Tensor], dict[str, Tensor]]


@torch.no_grad()
def run(args: LongArgs) -> dict[str, Any]:
    """The three parts; the report, its table shown and kept.

    Raises:
        InputError: an option cannot be used here.
        WrongResults: an op differs from its torch form.
    """
    check_counts(tokens=args.tokens, piece_length=args.piece_length, channels=args.channels)
    check_names((args.shape, *args.small))
    if args.channels % BLOCK:
        raise InputError(f"--channels {args.channels} is no multiple of {BLOCK}")
    device, dtype = prepare(args)
    paths = result_paths(args.save, args.output)
    report = begin("long", args, device, dtype=dtype)
    report.update(results=[], checks=[])
    if "model" in args.what:
        report["results"] += list(read_prompt(args, device, dtype))
    if "equal" in args.what:
        report["checks"] += [compare_with_torch(name, args, device) for name in args.small]
    if "ops" in args.what:
        report["checks"] += list(compare_ops(args, device, dtype))
    show_table((*LABELS, *FIGURES), len(LABELS), table_rows(report))
    keep(report, as_markdown(report, (*LABELS, *FIGURES), table_rows(report)), paths)
    return report


def read_prompt(args: LongArgs, device: str, dtype: str) -> Iterator[dict[str, Any]]:
    """The prompt into a cache in pieces, plain and by two stages: time and peak memory."""
    shape = SHAPES[args.shape]
    progress(f"{args.shape}: random weights")
    model = build(shape, device, dtype)
    ids = random_ids(shape.vocab_size, 1, args.tokens, device)
    settings = {"plain": False, "two-stages": CompressionConfig()}
    options: dict[str, Any] = {"piece_length": args.piece_length}
    for who, compression in settings.items():
        # kernels are compiled, and a graph captured, by a prompt of two pieces
        prefill(model, ids[:, : 2 * args.piece_length], compression=compression, **options)
        progress(f"{args.shape}: {args.tokens:,} tokens in pieces of {args.piece_length:,}, {who}")
        run_it = partial(prefill, model, ids, compression=compression, **options)
        taken = take_turns({who: run_it}, 1, device, warm_up=0)[who]
        yield {
            "what": "model", "shape": args.shape, "who": who, "tokens": args.tokens,
            **taken.as_dict(), "tokens_per_s": args.tokens / taken.median,
        }  # fmt: skip


def compare_with_torch(name: str, args: LongArgs, device: str) -> dict[str, Any]:
    """Every state of a small float32 model, and the final ones: pieces against torch and whole."""
    shape = SHAPES[name]
    whole = build(shape, device, "float32")
    use_states(whole)
    model: Any = ReMambaModel(whole.config)
    model = model.to(device).eval()
    model.load_state_dict(whole.state_dict(), strict=False)
    ids = random_ids(shape.vocab_size, 1, args.tokens, device)
    progress(f"{name}, float32: {args.tokens:,} tokens in pieces")
    options: dict[str, Any] = {"compression": False, "use_cache": True}
    found = model(ids, piece_length=args.piece_length, **options)
    progress(f"{name}, float32: {args.tokens:,} tokens whole, by the torch form")
    with use_backend("torch"):
        wanted = model(ids, piece_length=args.tokens, **options)
    hidden = relative_error(found.last_hidden_state, wanted.last_hidden_state)
    errors = {"last-layer states": hidden}
    for kind in ("conv_states", "ssm_states"):
        states = (getattr(out.cache_params, kind) for out in (found, wanted))
        for layer, pair in enumerate(zip(*states, strict=True)):
            errors[f"{kind} of layer {layer}"] = relative_error(*pair)
    return {
        "what": "equal", "shape": name, "who": "pieces and kernels", "tokens": args.tokens,
        **judge(f"{name} in pieces", errors, LIMITS["float32"]),
    }  # fmt: skip


def compare_ops(args: LongArgs, device: str, dtype: str) -> Iterator[dict[str, Any]]:
    """One whole call of each op, and one backward, against the torch form on blocks of channels.

    Channels, and the heads of Mamba-2, do not see each other: a block alone must give the same
    outputs, states, and gradients of what is its own.

    Raises:
        WrongResults: an op differs.
    """
    for op, kind in OPS:
        shape = Shape(kind, args.channels // 2, 1, 1)
        row = {
            "what": "op", "shape": f"{args.channels} channels", "who": op, "tokens": args.tokens,
            "elements": args.tokens * args.channels,
        }  # fmt: skip
        for part, compute in (("output", _outputs), ("gradient", _gradients)):
            progress(f"{op}, {part}: {args.tokens:,} tokens, {row['elements']:,} elements")
            try:
                errors = _compare_op(op, shape, compute, args, device, dtype)
            except torch.OutOfMemoryError:
                progress(f"{op}, {part}: left out, the memory does not suffice")
                yield {**row, "of": part, "left_out": "memory"}
                continue
            finally:
                if is_cuda(device):
                    torch.cuda.empty_cache()
            judged = judge(f"{op}, {args.tokens:,} tokens", errors, LIMITS[dtype])
            yield {**row, **judged}


def _compare_op(
    op: str, shape: Shape, compute: Compute, args: LongArgs, device: str, dtype: str
) -> dict[str, float]:
    """Relative error of each tensor in a block at both ends and one in the middle."""
    kind = getattr(torch, dtype)
    inputs = make_inputs(op, shape, 1, args.tokens, device, kind, with_state=False)
    weight = torch.randn_like(inputs["x"])
    found = compute(op, inputs, weight)
    last = args.channels - BLOCK
    starts = sorted({0, last // 2 // BLOCK * BLOCK, last})
    channels = torch.cat([torch.arange(start, start + BLOCK, device=device) for start in starts])
    block = {name: _choose(op, name, tensor, channels) for name, tensor in inputs.items()}
    with use_backend("torch"):
        wanted = compute(op, block, _choose(op, "x", weight, channels))
    return {
        name: relative_error(_choose(op, name.split()[-1], found[name], channels), tensor)
        for name, tensor in wanted.items()
    }


def _outputs(op: str, inputs: Inputs, weight: Tensor) -> dict[str, Tensor]:
    y, state = getattr(ops, op)(**inputs)
    return {"y": y, "state": state}


def _gradients(op: str, inputs: Inputs, weight: Tensor) -> dict[str, Tensor]:
    """Those of the inputs that belong to a channel."""
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in inputs.items()
        if name in AXES[op]
    }
    with torch.enable_grad():
        y, _ = getattr(ops, op)(**{**inputs, **leaves})
        gradients = torch.autograd.grad(y, list(leaves.values()), weight)
    return {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def _choose(op: str, name: str, tensor: Tensor, channels: Tensor) -> Tensor:
    """Some channels of a tensor; all of it where it belongs to no channel."""
    axis = AXES[op].get(name, OUTPUT_AXES[op].get(name))
    if axis is None:
        return tensor
    return tensor.index_select(axis, channels[::HEAD_DIM] // HEAD_DIM if op == "ssd" else channels)


LABELS = ("what", "shape", "tokens", "who")
FIGURES = ("s", "tokens/s", "peak GiB", "relative error", "of", "limit")


def table_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a run or a check, LABELS and FIGURES."""
    for r in (*report["results"], *report["checks"]):
        yield (
            r["what"],
            r["shape"],
            f"{r['tokens']:,}",
            r["who"],
            figure(r.get("median_s")),
            figure(r.get("tokens_per_s"), 4),
            figure(r.get("peak_gib")),
            r.get("left_out") or figure(r.get("relative_error"), 2),
            r.get("of", "-"),
            figure(r.get("limit")),
        )
