"""How fast is each op by itself, implementation by implementation?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lab.bench.ceilings import Ceilings, describe, measure_ceilings
from lab.bench.check import LIMITS, judge, relative_error
from lab.bench.measure import (
    check_counts,
    device_clock,
    is_cuda,
    prepare,
    progress,
    take_turns,
)
from lab.bench.op_cases import (
    GPU_CASES,
    Case,
    Form,
    Inputs,
    as_ours,
    is_step,
    make_inputs,
    ops_of,
    own_form,
    peer_forms,
    work,
)
from lab.bench.report import as_markdown, begin, figure, keep, result_paths, show_table
from lab.bench.settings import OpsArgs
from lab.bench.shapes import SHAPES, check_names
from remamba.errors import InputError
from remamba.ops import backend

CHECK_ROWS, CHECK_LENGTH = 2, 70


def run(args: OpsArgs) -> dict[str, Any]:
    """Check, time and compare; the report, its table shown and kept.

    Raises:
        InputError: an option cannot be used here.
        WrongResults: an implementation differs from the reference.
    """
    check_counts(lengths=args.lengths, batch=args.batch, repeats=args.repeats, steps=args.steps)
    device, dtype = prepare(args)
    cases = choose_cases(args, device)
    for name in args.backends:
        if name not in backend.BACKENDS:
            raise InputError(
                f"--backends {name} is unknown; there are {', '.join(backend.BACKENDS)}"
            )
    paths = result_paths(args.save, args.output)
    report = begin("ops", args, device, dtype=dtype)
    report["shapes"] = {case.shape: asdict(SHAPES[case.shape]) for case in cases}
    ceilings = measure_ceilings(device, dtype)
    report.update(ceilings=ceilings.as_dict(), checks=[], results=[])
    for case in cases:
        names = forms_of(case, args, device)
        report["checks"] += [check(case, name, device, dtype) for name in names]
        checks, rows = time_case(case, names, device, dtype, ceilings, args)
        report["checks"] += checks
        report["results"] += rows
        # what is finished is kept, whatever the next case meets
        said = [describe(ceilings)]
        keep(report, as_markdown(report, (*LABELS, *FIGURES), table_rows(report), said), paths)
    show_table((*LABELS, *FIGURES), len(LABELS), table_rows(report))
    progress(describe(ceilings))
    return report


def choose_cases(args: OpsArgs, device: str) -> list[Case]:
    """The cases with a goal, or every op of the shapes asked for."""
    check_names(args.shapes)
    shapes = args.shapes
    if shapes or not is_cuda(device):
        cases = []
        for name in shapes or ("mamba-130m", "mamba2-130m"):
            for op in ops_of(SHAPES[name]):
                for length in (1,) if is_step(op) else args.lengths:
                    backward = args.backward and not is_step(op)
                    cases.append(Case(op, name, args.batch, length, backward))
    else:
        cases = list(GPU_CASES)
    known = sorted({case.op for case in cases})
    for op in args.ops:
        if op not in known:
            raise InputError(f"--ops {op} is not among the cases; there are {', '.join(known)}")
    return [case for case in cases if not args.ops or case.op in args.ops]


def forms_of(case: Case, args: OpsArgs, device: str) -> list[str]:
    """The implementations to time: those asked for, or all that run here but the reference."""
    forms = backend.IMPLEMENTATIONS[case.op]
    if args.backends:
        return [name for name in args.backends if name in forms]
    default = backend.resolve(case.op, device)
    if not is_cuda(device):
        return [default]
    found = [default]
    for name in forms:
        if name in ("ref", default):
            continue
        try:
            with backend.use_backend(name):
                backend.resolve(case.op, device)
        except InputError as error:
            progress(f"left out: {error}")
        else:
            found.append(name)
    return found


def check(case: Case, name: str, device: str, dtype: str) -> dict[str, Any]:
    """Errors of a form's outputs and gradients to the reference's in float64, on equal inputs.

    Raises:
        WrongResults: they are above the limit.
    """
    kind = getattr(torch, dtype)
    shape = SHAPES[case.shape]
    inputs = make_inputs(case.op, shape, CHECK_ROWS, CHECK_LENGTH, device, kind, with_state=True)
    wanted = {key: tensor.double() for key, tensor in inputs.items()}
    errors: dict[str, float] = {}
    if is_step(case.op):
        pairs = zip(own_form(case.op, name)(inputs), own_form(case.op, "ref")(wanted), strict=True)
        errors = {f"output {i}": relative_error(a, b) for i, (a, b) in enumerate(pairs)}
    else:
        weights = [torch.randn_like(t) for t in own_form(case.op, "ref")(wanted)]
        a = _outputs_and_gradients(own_form(case.op, name), inputs, weights)
        b = _outputs_and_gradients(own_form(case.op, "ref"), wanted, weights)
        errors = {key: relative_error(a[key], b[key]) for key in b}
    return {
        "op": case.op, "shape": case.shape, "backend": name, "against": "reference in float64",
        "length": CHECK_LENGTH, **judge(f"{case.op}, {name}", errors, LIMITS[dtype]),
    }  # fmt: skip


def _outputs_and_gradients(form: Form, inputs: Inputs, weights: list[Tensor]) -> Inputs:
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
    with torch.enable_grad():
        outputs = form(leaves)
        matched = [w.to(t.dtype) for w, t in zip(weights, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), matched)
    found = {f"output {i}": tensor.detach() for i, tensor in enumerate(outputs)}
    return {**found, **{f"d{key}": g for key, g in zip(leaves, gradients, strict=True)}}


def check_at_length(
    case: Case, runs: dict[str, Callable[[], tuple[Tensor, ...]]], dtype: str
) -> list[dict[str, Any]]:
    """Errors of every contender's output at the timed shape to the torch form's."""
    if "torch" not in runs or len(runs) < 2:
        return []
    found: list[dict[str, Any]] = []
    row = {"op": case.op, "shape": case.shape, "against": "torch", "length": case.length}
    try:
        wanted = runs["torch"]()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        progress(f"check: {case.op} at {case.length}: the torch form needs too much memory")
        return [{**row, "left_out": "memory"}]
    for name, run_form in runs.items():
        if name == "torch":
            continue
        outputs = run_form()
        y = outputs[0] if outputs[0].shape == wanted[0].shape else as_ours(case.op, outputs[0])
        errors = {"output 0": relative_error(y, wanted[0])}
        is_peer = name not in backend.BACKENDS
        title = f"{case.op} at {case.length}, {name}"
        judged = judge(title, errors, LIMITS[dtype], is_told=is_peer)
        found.append({**row, "backend": name, **judged})
    return found


def time_case(
    case: Case, names: list[str], device: str, dtype: str, ceilings: Ceilings, args: OpsArgs
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(checks at the timed shape, rows of figures) of one case."""
    inputs = make_inputs(
        case.op, SHAPES[case.shape], case.batch, case.length, device, getattr(torch, dtype),
        with_state=False,
    )  # fmt: skip
    forms: dict[str, tuple[Inputs, Form]] = {n: (inputs, own_form(case.op, n)) for n in names}
    if is_cuda(device) and case.length > 1:
        forms.update((name, adapt(inputs)) for name, adapt in peer_forms(case.op).items())
    forward: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        name: partial(form, given) for name, (given, form) in forms.items()
    }
    title = f"{case.shape} {case.op} {case.batch} x {case.length}"
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        checks = check_at_length(case, forward, dtype)
        rows += _time(case, "forward", forward, inputs, ceilings, device, title, args)
    if case.backward:
        weight = torch.randn_like(inputs["x"])
        backward = {name: _backward(form, given, weight) for name, (given, form) in forms.items()}
        rows += _time(case, "backward", backward, inputs, ceilings, device, title, args)
    return checks, rows


def _backward(form: Form, inputs: Inputs, weight: Tensor) -> Callable[[], object]:
    """The backward alone: the forward is done here, and its graph kept."""
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
    with torch.enable_grad():
        y = form(leaves)[0]
    weight = weight if y.shape == weight.shape else weight.mT.contiguous()
    return lambda: torch.autograd.grad(y, list(leaves.values()), weight, retain_graph=True)


def _time(
    case: Case,
    what: str,
    contenders: dict[str, Callable[[], Any]],
    inputs: Inputs,
    ceilings: Ceilings,
    device: str,
    title: str,
    args: OpsArgs,
) -> Iterator[dict[str, Any]]:
    steps = args.steps if is_step(case.op) and not is_cuda(device) else 1
    runs: dict[str, Callable[[], Any]] = contenders
    if steps > 1:
        runs = {name: partial(_repeat, run_form, steps) for name, run_form in contenders.items()}
    repeats = args.repeats or (20 if is_cuda(device) else 5)
    budget = 3.0 if args.budget is None and is_cuda(device) else args.budget
    times = take_turns(
        runs, repeats, device, f"{title} {what}", clock=device_clock(device), budget=budget
    )
    floor, limit = work(case.op, inputs, what).floor(ceilings)
    for name, taken in times.items():
        yield {
            "shape": case.shape, "op": case.op, "batch": case.batch, "length": case.length,
            "what": what, "who": name, **taken.as_dict(steps), "floor_s": floor,
            "floor_by": limit, "over_floor": taken.median / steps / floor,
        }  # fmt: skip


def _repeat(run_form: Callable[[], object], steps: int) -> None:
    for _ in range(steps):
        run_form()


SHORT = {"bytes": "bytes", "products": "prod", "exponentials": "exp"}
LABELS = ("shape", "op", "batch x length", "what", "who")
FIGURES = ("median ms", "min - max ms", "host ms", "floor ms", "/ floor")


def table_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a figure, as LABELS and FIGURES."""
    for r in report["results"]:
        size = f"{r['batch']} x {r['length']}"
        key = (r["shape"], r["op"], size, r["what"])
        yield (
            *key,
            r["who"],
            figure(r["median_s"] * 1e3),
            f"{figure(r['min_s'] * 1e3)} - {figure(r['max_s'] * 1e3)}",
            figure(r["host_s"] * 1e3) if "host_s" in r else "-",
            f"{figure(r['floor_s'] * 1e3)} {SHORT[r['floor_by']]}",
            figure(r["over_floor"]),
        )
