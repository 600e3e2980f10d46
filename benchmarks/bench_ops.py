"""How fast is each op by itself, implementation by implementation?

Every op of remamba.ops runs on random inputs of a published model's sizes. Each implementation is
first checked against the reference (float64 inputs, a short length): if it differs, no speed is
told and the exit code is 1. Then the implementations are timed in turns, forward alone and, with
--backward, forward and backward.

Examples:

    python benchmarks/bench_ops.py --shapes mamba-130m --lengths 2048
    python benchmarks/bench_ops.py --shapes mamba-2.8b mamba2-2.7b --lengths 6144 65536 \\
        --device cuda --dtype bfloat16 --backends torch triton --backward --save ops-h100

"ref" goes step by step: ask for it at short lengths only. The decode steps are timed --steps at a
time and told for one. Stdout's last line is one JSON object; progress and the table go to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders import LIMITS, SHAPES, Shape, WrongLogits, shapes_parser
from measure import (
    begin,
    head_lines,
    keep,
    positive,
    prepare_device,
    result_paths,
    show_table,
    take_turns,
)
from torch import Tensor

from remamba import ops
from remamba.errors import InputError
from remamba.ops import backend

CHECK_LENGTH = 70


def make_inputs(
    op: str, shape: Shape, rows: int, length: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of an op, at one of its steps where it has no length."""
    e, heads = 2 * shape.hidden_size, 2 * shape.hidden_size // 64
    n = shape.sizes["state_size"]
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=dtype)

    if op == "causal_conv":
        channels = e if shape.kind == "mamba" else e + 2 * n
        return {
            "x": random(rows, length, channels),
            "weight": random(channels, 4),
            "bias": random(channels),
        }
    is_step = op.endswith("state_update")
    along = (rows,) if is_step else (rows, length)
    if shape.kind == "mamba":
        inputs = {
            "x": random(*along, e),
            "dt": random(*along, e) - 4,
            "A": -F.softplus(random(e, n, dtype=exact)),
            "B": random(*along, n),
            "C": random(*along, n),
            "D": random(e, dtype=exact),
            "z": random(*along, e),
        }
        state = random(rows, e, n, dtype=exact)
    else:
        inputs = {
            "x": random(*along, heads, 64),
            "dt": random(*along, heads) - 4,
            "A": -F.softplus(random(heads, dtype=exact)),
            "B": random(*along, 1, n),
            "C": random(*along, 1, n),
            "D": random(heads, dtype=exact),
        }
        state = random(rows, heads, 64, n, dtype=exact)
    return {**inputs, "state" if is_step else "initial_state": state}


def ops_of(shape: Shape) -> tuple[str, ...]:
    scan = "selective_" if shape.kind == "mamba" else "ssd_"
    whole = "selective_scan" if shape.kind == "mamba" else "ssd"
    return (whole, "causal_conv", f"{scan}state_update")


def run_op(op: str, name: str, inputs: dict[str, Any], steps: int = 1) -> tuple[Tensor, Tensor]:
    with backend.use_backend(name):
        for _ in range(steps):
            outputs = getattr(ops, op)(**inputs)
    return outputs


def run_backward(op: str, name: str, inputs: dict[str, Any], weight: Tensor) -> None:
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
    y, _ = run_op(op, name, leaves)
    torch.autograd.grad(y, list(leaves.values()), weight)


def check(op: str, name: str, shape: Shape, device: str, dtype: str) -> dict[str, Any]:
    """Relative error of an implementation's outputs to the reference's, on the same inputs."""
    inputs = make_inputs(op, shape, 2, CHECK_LENGTH, device, getattr(torch, dtype))
    wanted = run_op(op, "ref", {key: tensor.double() for key, tensor in inputs.items()})
    found = run_op(op, name, inputs)
    error = max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(found, wanted, strict=True)
    )
    if not error < LIMITS[dtype]:
        raise WrongLogits(
            f"{op}, {name}: differs from the reference by {error:.1e} of the largest value (limit "
            f"{LIMITS[dtype]:g}): no speed is told"
        )
    return {"op": op, "backend": name, "relative_error": error, "limit": LIMITS[dtype]}


def time_op(
    op: str, names: list[str], shape: Shape, length: int, title: str, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of figures of one op at one length."""
    is_step = op.endswith("state_update")
    steps = args.steps if is_step else 1
    inputs = make_inputs(op, shape, args.batch, length, args.device, getattr(torch, args.dtype))
    runs: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(run_op, op, name, inputs, steps) for name in names}
    }
    if args.backward and not is_step:
        weight = torch.randn_like(inputs["x"])
        runs["forward + backward"] = {
            name: partial(run_backward, op, name, inputs, weight) for name in names
        }
    for what, contenders in runs.items():
        with torch.set_grad_enabled(what != "forward"):
            times = take_turns(contenders, args.repeats, args.device, f"{title} {what}")
        for name, taken in times.items():
            found = {
                key: [v / steps for v in value] if isinstance(value, list) else value / steps
                for key, value in taken.as_dict().items()
                if key.endswith("_s")
            }
            yield {"op": op, "what": what, "backend": name, **found}


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Check and time every op of every shape; the report."""
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "save")}
    report = {**begin(__file__, argv, args.device), "settings": settings}
    report["shapes"] = {name: asdict(SHAPES[name]) for name in args.shapes}
    report.update(checks=[], results=[])
    torch.manual_seed(args.seed)
    for name in args.shapes:
        shape = SHAPES[name]
        for op in ops_of(shape):
            forms = backend.IMPLEMENTATIONS[op]
            names = [form for form in args.backends if form in forms]
            for form in names:
                report["checks"].append(
                    {"shape": name, **check(op, form, shape, args.device, args.dtype)}
                )
            for length in [1] if op.endswith("state_update") else args.lengths:
                title = f"{name} {op} {length}"
                for row in time_op(op, names, shape, length, title, args) if names else ():
                    report["results"].append({"shape": name, "length": length, **row})
    return report


LABELS = ("shape", "op", "length", "what", "backend")
FIGURES = ("median ms", "min - max ms")


def rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a figure, as LABELS and FIGURES."""
    for r in report["results"]:
        low, high = r["min_s"] * 1e3, r["max_s"] * 1e3
        labels = tuple(str(r[label]) for label in LABELS)
        yield *labels, f"{r['median_s'] * 1e3:.3g}", f"{low:.3g} - {high:.3g}"


def as_markdown(report: dict[str, Any]) -> str:
    columns = (*LABELS, *FIGURES)
    lines = head_lines(report)
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = shapes_parser(__doc__)
    add = parser.add_argument
    add("--lengths", nargs="+", type=positive, default=[512, 2048], metavar="TOKENS",
        help="of the scans and the convolution (default: 512 2048)")  # fmt: skip
    add("--backends", nargs="+", default=["torch"], choices=backend.BACKENDS,
        help="implementations to time, where an op has them (default: torch)")  # fmt: skip
    add("--backward", action="store_true", help="also forward and backward together")
    add("--batch", type=positive, default=1, metavar="ROWS", help="rows at once (default: 1)")
    add("--steps", type=positive, default=20, metavar="N",
        help="decode steps in one turn (default: 20)")  # fmt: skip
    add("--repeats", type=positive, default=5, metavar="N",
        help="turns of each, after one to warm up (default: 5)")  # fmt: skip
    add("--threads", type=positive, default=2, metavar="N", help="CPU threads (default: 2)")
    add("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add("--dtype", default="float32", choices=tuple(LIMITS), help="of the inputs")
    add("--seed", type=int, default=0, help="of the inputs (default: 0)")
    add("--output", type=Path, metavar="FILE.json", help="also write the report here")
    add("--save", nargs="?", const="ops", metavar="NAME",
        help="keep it as benchmarks/results/NAME_DATE.json and .md (NAME: ops)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    try:
        for name in args.shapes:
            if name not in SHAPES:
                raise InputError(f"--shapes {name} is unknown; there are {', '.join(SHAPES)}")
        prepare_device(args.device, args.threads)
        paths = result_paths(args.save, args.output)
        report = run(args, argv)
    except (InputError, WrongLogits) as error:
        print(f"bench_ops.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    show_table((*LABELS, *FIGURES), len(LABELS), rows(report))
    keep(report, as_markdown(report), paths)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
