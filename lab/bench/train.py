"""A training step by the paper's recipe: ReMamba, plain Mamba, and transformers' Mamba with PEFT.

    python lab/bench/train.py --output lab/bench/results/train.json

Random weights of a published shape, low-rank adapters as `--recipe paper` has them, one row of
random tokens, bfloat16 on a GPU. ReMamba and plain Mamba are steps of the very same model, with
and without gradient checkpointing, timed in turns; a step is forward, backward, clipping and AdamW.
transformers' Mamba gets checkpointing in any case: without compiled kernels it holds every
state of every position.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from lab.bench.report import machine
from lab.bench.shapes import SHAPES
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.files import make_directory, write_whole
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.provenance import commit, versions
from remamba.train.config import TrainArgs
from remamba.train.lora import adapter_config, add_adapters, hold_frozen_in_bfloat16


@dataclass(frozen=True)
class Args:
    """Time a training step by the paper's recipe, with its peak memory and tokens a second."""

    shape: str = "mamba-2.8b"
    """A Mamba or Mamba-2 shape of `remamba bench`."""
    tokens: int = 6000
    """Of a row, its answer included."""
    answer: int = 200
    """Tokens of the answer."""
    rows: int = 1
    """Rows of a step."""
    repeats: int = 5
    """Timed steps of each, after one that is not."""
    checkpointing: tuple[bool, ...] = (False, True)
    """Whether layers are recomputed: both are timed."""
    peer: bool = True
    """Also time transformers' Mamba (Mamba shapes)."""
    peer_repeats: int = 1
    """Its timed steps, after one on a short row that is not."""
    device: str = "auto"
    """cpu or cuda."""
    output: Path | None = None
    """File for the report."""


Run = Callable[[], float]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Times all contenders; prints and returns the report."""
    args = tyro.cli(Args, args=argv)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "shape": args.shape, "tokens": args.tokens, "answer": args.answer, "rows": args.rows,
        "machine": machine(device), "versions": versions(), "commit": commit(), "results": [],
    }  # fmt: skip
    ours(args, device, report["results"])
    if args.peer and SHAPES[args.shape].kind == "mamba":
        theirs(args, device, report["results"])
    compare(report)
    for row in report["results"]:
        print(row_text(row), file=sys.stderr)
    print(json.dumps(report["ratios"]))
    if args.output is not None:
        make_directory(args.output.parent)
        write_whole(args.output, json.dumps(report, indent=2) + "\n")
    return report


def a_batch(args: Args, vocab_size: int, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocab_size, (args.rows, args.tokens), generator=generator)
    labels = ids.clone()
    labels[:, : args.tokens - args.answer] = -100
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def stepper(model: Any, device: str, forward: Callable[[], Any]) -> Run:
    """One optimizer step; returns its loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)
    is_cuda = device.startswith("cuda")

    def step() -> float:
        with torch.autocast("cuda", torch.bfloat16) if is_cuda else nullcontext():
            loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def timed(step: Run, device: str) -> tuple[float, float, float]:
    """Seconds of a step, its loss, and the most memory held in it (GiB)."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loss = step()  # reads the loss: the device is done
    if is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, loss, torch.cuda.max_memory_allocated() / 2**30 if is_cuda else 0.0


def turns(
    steps: dict[str, Run], repeats: int, device: str, args: Args, first: int = 0
) -> list[dict[str, Any]]:
    """A row of each contender; they are timed in turns, of which turn 0 does not count."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    for turn in range(first, repeats + 1):
        for name, step in list(steps.items()):
            try:
                measured = timed(step, device)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                del steps[name]
                continue
            if turn:
                found[name].append(measured)
    rows = []
    for name, samples in found.items():
        if not samples:
            rows.append({"name": name, "out_of_memory": True})
            continue
        seconds = [sample[0] for sample in samples]
        median = statistics.median(seconds)
        rows.append(
            {
                "name": name, "median_s": median, "min_s": min(seconds), "max_s": max(seconds),
                "tokens_per_second": args.rows * args.tokens / median, "loss": samples[-1][1],
                "peak_gib": max(sample[2] for sample in samples), "samples_s": seconds,
            }
        )  # fmt: skip
    return rows


def ours(args: Args, device: str, results: list[dict[str, Any]]) -> None:
    """ReMamba and plain Mamba, each with and without checkpointing."""
    shape = SHAPES[args.shape]
    options = TrainArgs(recipe="paper", base="-", data=("-",), output="-")
    compression = {
        "length": sum(options.length or ()) / 2, "keep_ratio": sum(options.keep_ratio or ()) / 2,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = ReMambaForCausalLM(ReMambaConfig(backbone_type=shape.kind, **shape.sizes))
        adapted = add_adapters(
            model, adapter_config(options, shape.kind), with_dt_bias=shape.kind == "mamba2"
        )
    adapted.to(device).train()
    if device.startswith("cuda"):
        hold_frozen_in_bfloat16(adapted)
        torch.cuda.empty_cache()
    batch = a_batch(args, shape.vocab_size, device)
    prompts = torch.full((args.rows,), args.tokens - args.answer)

    def forward(is_compressed: bool) -> Any:
        return adapted(
            **batch,
            prompt_lengths=prompts,
            compression=compression if is_compressed else False,
            return_logits=False,
            use_cache=False,
        ).loss

    steps = {
        "remamba": stepper(adapted, device, lambda: forward(True)),
        "plain": stepper(adapted, device, lambda: forward(False)),
    }
    for is_checkpointed in args.checkpointing:
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        suffix = ", checkpointed" if is_checkpointed else ""
        named = {name + suffix: step for name, step in steps.items()}
        results += turns(named, args.repeats, device, args)


def theirs(args: Args, device: str, results: list[dict[str, Any]]) -> None:
    """transformers' MambaForCausalLM with PEFT on the same projections that PEFT allows."""
    from peft import LoraConfig, get_peft_model
    from transformers import MambaConfig, MambaForCausalLM
    from transformers.models.mamba import modeling_mamba

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    shape = SHAPES[args.shape]
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        base: Any = MambaForCausalLM(MambaConfig(use_cache=False, **shape.sizes))
        base = base.to(dtype)
        # PEFT refuses out_proj here: transformers' fast path reads its weight past the adapter
        config = LoraConfig(
            r=32, target_modules=["in_proj", "embeddings", "lm_head"], modules_to_save=["dt_proj"]
        )
        adapted: Any = get_peft_model(base, config)
    adapted.to(device).train()
    adapted.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = a_batch(args, shape.vocab_size, device)
    short = {name: tensor[:, -64:] for name, tensor in batch.items()}
    stepper(adapted, device, lambda: adapted(**short, use_cache=False).loss)()
    step = stepper(adapted, device, lambda: adapted(**batch, use_cache=False).loss)
    rows = turns({"transformers with PEFT": step}, args.peer_repeats, device, args, first=1)
    rows[0]["kernels"] = bool(getattr(modeling_mamba, "is_fast_path_available", False))
    results += rows


def compare(report: dict[str, Any]) -> None:
    """The ratios that count, of what was timed."""
    times = {row["name"]: row["median_s"] for row in report["results"] if "median_s" in row}
    report["ratios"] = {
        f"{a} / {b}": times[a] / times[b]
        for a, b in (
            ("remamba", "plain"),
            ("remamba, checkpointed", "plain, checkpointed"),
            ("transformers with PEFT", "plain"),
            ("transformers with PEFT", "plain, checkpointed"),
        )
        if a in times and b in times
    }


def row_text(row: dict[str, Any]) -> str:
    if "median_s" not in row:
        return f"{row['name']}: out of memory"
    return (
        f"{row['name']}: {row['median_s']:.3f} s ({row['min_s']:.3f} to {row['max_s']:.3f}), "
        f"{row['tokens_per_second']:,.0f} tokens/s, peak {row['peak_gib']:.1f} GiB"
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"bench_train.py: {error}")
