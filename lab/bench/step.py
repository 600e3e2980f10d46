"""What do a training step's forward and backward take, in time and in memory, beside mamba_ssm?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.bench.check import judge, limit_of_logits, relative_error
from lab.bench.measure import (
    Sample,
    check_counts,
    is_cuda,
    own_clock,
    prepare,
    progress,
    ratio,
    take_turns,
    wall_clock,
)
from lab.bench.passes import random_ids
from lab.bench.report import as_markdown, begin, figure, keep, result_paths, show_table
from lab.bench.settings import StepArgs
from lab.bench.shapes import SHAPES, build, build_mamba_ssm, check_names, has_mamba_ssm

# shape -> (rows, tokens of a row)
ROWS = {
    "mamba-130m": (8, 2048),
    "mamba2-130m": (8, 2048),
    "mamba-2.8b": (1, 4096),
    "mamba2-2.7b": (1, 4096),
}
SMALL = (2, 64)
"""On a CPU, and of shapes that ROWS does not name."""

Step = Callable[[], Tensor]


def run(args: StepArgs) -> dict[str, Any]:
    """Check, time and compare every shape; the report, its table shown and kept.

    Raises:
        InputError: an option cannot be used here.
        WrongResults: the losses or gradients differ.
    """
    check_counts(rows=args.rows, tokens=args.tokens, repeats=args.repeats)
    check_names(args.shapes)
    device, dtype = prepare(args)
    shapes = args.shapes or (tuple(ROWS) if is_cuda(device) else ("mamba-tiny", "mamba2-tiny"))
    paths = result_paths(args.save, args.output)
    report = begin("step", args, device, dtype=dtype, shapes=shapes)
    report.update(
        shapes={name: asdict(SHAPES[name]) for name in shapes},
        checks=[], results=[], comparisons=[],
    )  # fmt: skip
    columns = (*LABELS, *FIGURES)
    for name in shapes:
        time_shape(name, args, device, dtype, report)
        # what is finished is kept, whatever the next shape meets
        keep(report, as_markdown(report, columns, table_rows(report), sentences(report)), paths)
        if is_cuda(device):
            torch.cuda.empty_cache()
    show_table(columns, len(LABELS), table_rows(report))
    for sentence in sentences(report):
        progress(sentence)
    return report


def time_shape(name: str, args: StepArgs, device: str, dtype: str, report: dict[str, Any]) -> None:
    """Adds a shape's checks, figures and ratio to the report."""
    shape = SHAPES[name]
    rows, tokens = ROWS.get(name, SMALL) if is_cuda(device) else SMALL
    rows, tokens = args.rows or rows, args.tokens or tokens
    progress(f"{name}: random weights")
    ours = build(shape, device, dtype).train().requires_grad_(True)
    ids = random_ids(shape.vocab_size, rows, tokens, device)
    steps: dict[str, tuple[nn.Module, Step]] = {"remamba": (ours, partial(own_step, ours, ids))}
    if args.peers and has_mamba_ssm() and is_cuda(device):
        theirs = build_mamba_ssm(shape, ours).train().requires_grad_(True)
        steps["mamba_ssm"] = (theirs, partial(peer_step, theirs, ids))
        report["checks"].append({"shape": name, **check(name, ours, theirs, steps, dtype)})
    times = take_turns(
        {who: partial(timed, *step, device) for who, step in steps.items()},
        args.repeats or 7, device, f"{name} step", clock=own_clock,
    )  # fmt: skip
    for who, taken in times.items():
        report["results"].append(
            {
                "shape": name, "batch": rows, "length": tokens, "who": who, **taken.as_dict(),
                "tokens_per_s": rows * tokens / taken.median,
                "peak_gib": peak(*steps[who], [m for m, _ in steps.values()], device),
            }
        )  # fmt: skip
    if "mamba_ssm" in times:
        report["comparisons"].append(
            {"shape": name, "as_fast": ratio(times["mamba_ssm"], times["remamba"])}
        )


def own_step(model: Any, ids: Tensor) -> Tensor:
    loss = model(ids, labels=ids, return_logits=False, use_cache=False, compression=False).loss
    loss.backward()
    return loss.detach()


def peer_step(model: Any, ids: Tensor) -> Tensor:
    """Cross-entropy by torch, as mamba_ssm has none of its own."""
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    loss = F.cross_entropy(logits.float(), ids[:, 1:].flatten())
    loss.backward()
    return loss.detach()


def timed(model: nn.Module, step: Step, device: str) -> Sample:
    """One step, its gradients thrown away behind it."""
    sample = wall_clock(step, device)
    model.zero_grad(set_to_none=True)
    return sample


def peak(model: nn.Module, step: Step, models: list[nn.Module], device: str) -> float | None:
    """GiB of one step at most, its weights and gradients counted and other models' weights not."""
    if not is_cuda(device):
        return None
    torch.cuda.empty_cache()
    others = sum(size_of(other) for other in models if other is not model)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    found = torch.cuda.max_memory_allocated(device) - others
    model.zero_grad(set_to_none=True)
    return found / 2**30


def size_of(model: nn.Module) -> int:
    """Bytes of the weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def check(
    name: str, ours: Any, theirs: Any, steps: dict[str, tuple[nn.Module, Step]], dtype: str
) -> dict[str, Any]:
    """Losses, and gradients from the last layer to the first; 16-bit rounding adds up on the way.

    Raises:
        WrongResults: they differ.
    """
    losses = [step().double() for _, step in steps.values()]
    errors = {"the loss": relative_error(losses[0], losses[1])}
    for part in ("norm_f.weight", "layers.0.mixer.D"):
        pair = [m.get_parameter(f"backbone.{part}").grad for m in (ours, theirs)]
        errors[f"the gradient of {part}"] = relative_error(*pair)
    for model, _ in steps.values():
        model.zero_grad(set_to_none=True)
    return judge(f"{name}, a step beside mamba_ssm", errors, limit_of_logits(dtype))


LABELS = ("shape", "rows x tokens", "who")
FIGURES = ("median s", "min - max s", "tokens/s", "peak GiB")


def table_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a contender, LABELS and FIGURES."""
    for r in report["results"]:
        yield (
            r["shape"], f"{r['batch']} x {r['length']}", r["who"], figure(r["median_s"]),
            f"{figure(r['min_s'])} - {figure(r['max_s'])}", figure(r["tokens_per_s"], 4),
            figure(r["peak_gib"]),
        )  # fmt: skip


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """The ratios of the run, and the least of them."""
    for c in report["comparisons"]:
        found = c["as_fast"]
        yield (
            f"{c['shape']}: {found['median']:.2f} times as fast as mamba_ssm "
            f"({found['min']:.2f} - {found['max']:.2f})."
        )
    least = [c["as_fast"]["median"] for c in report["comparisons"]]
    if len(least) > 1:
        yield f"{statistics.geometric_mean(least):.2f} times in the geometric mean."
