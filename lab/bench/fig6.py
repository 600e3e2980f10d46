"""The paper's Figure 6: tokens a second of whole answers, by the length of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lab.bench.measure import (
    Sample,
    Times,
    check_counts,
    is_cuda,
    own_clock,
    prepare,
    progress,
    spread,
    take_turns,
)
from lab.bench.passes import random_ids, run_engine, run_generate
from lab.bench.report import as_markdown, begin, figure, keep, show_table
from lab.bench.settings import Fig6Args
from lab.bench.shapes import SHAPES, Shape, build, build_llama, check_names
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import Engine
from remamba.errors import InputError
from remamba.files import check_directory, make_directory, whole_file
from remamba.pretrained import quiet_transformers

FILES = ("fig6.json", "fig6.md", "fig6.png")
WARM_UP_TOKENS = 8
NAMES = {"mamba": "Mamba", "mamba2": "Mamba-2", "llama": "Llama"}


@dataclass(frozen=True)
class Scale:
    """What is timed unless other options are given."""

    shapes: tuple[str, ...]
    lengths: tuple[int, ...]
    new_tokens: int
    repeats: int


SCALES = {
    "paper": Scale(
        ("mamba-2.8b", "mamba2-2.7b", "llama-3b"), (1024, 2048, 4096, 6144, 8192), 1024, 3
    ),
    "tiny": Scale(("mamba-tiny", "mamba2-tiny", "llama-tiny"), (64, 128, 256), 32, 3),
}


def run(args: Fig6Args) -> dict[str, Any]:
    """Time every model at every length; the report, kept as a table and a plot.

    Raises:
        InputError: there is no GPU for the paper's scale, no matplotlib, or the output is taken.
    """
    scale = SCALES[args.scale]
    shapes = args.shapes or scale.shapes
    check_counts(lengths=args.lengths, new_tokens=args.new_tokens, repeats=args.repeats)
    check_names(shapes, tuple(NAMES))
    new_tokens = args.new_tokens or scale.new_tokens
    if new_tokens <= WARM_UP_TOKENS:
        raise InputError(f"--new-tokens {new_tokens} must be above {WARM_UP_TOKENS}")
    pyplot = load_pyplot()
    check_output(args.output, args.overwrite)
    device, dtype = prepare(args)
    if args.scale == "paper" and not args.shapes and not is_cuda(device):
        raise InputError(
            "--scale paper needs a GPU, and this runs on the CPU; --scale tiny runs anywhere"
        )
    lengths = args.lengths or scale.lengths
    repeats = args.repeats or scale.repeats
    report = begin(
        "fig6", args, device, dtype=dtype, shapes=shapes, lengths=lengths,
        new_tokens=new_tokens, repeats=repeats,
    )  # fmt: skip
    report["shapes"] = {name: asdict(SHAPES[name]) for name in shapes}
    report["compression"] = CompressionConfig().to_dict()
    report.update(results=[], left_out=[])
    with torch.no_grad(), quiet_transformers():
        for name in shapes:
            progress(f"{name}: random weights")
            models = contenders(SHAPES[name], device, dtype, args.compile)
            for length in lengths:
                prompt = random_ids(SHAPES[name].vocab_size, 1, length, device)
                progress(f"{name}, {length} + {new_tokens} tokens")
                try:
                    times = time_answers(models, prompt, new_tokens, repeats, device)
                except RuntimeError as error:
                    # a peer that cannot be compiled here must not cost the figure
                    if SHAPES[name].kind != "llama":
                        raise
                    why = str(error).strip().splitlines()[0]
                    report["left_out"].append(f"{name} at {length}: {why}")
                    progress(f"left out: {report['left_out'][-1]}")
                    continue
                report["results"] += [
                    {"model": who, "shape": name, "input": length, **told(taken, new_tokens)}
                    for who, taken in times.items()
                ]
            del models
            if is_cuda(device):
                torch.cuda.empty_cache()
    said = list(sentences(report))
    show_table((*LABELS, *FIGURES), len(LABELS), table_rows(report))
    make_directory(args.output)
    image = args.output / "fig6.png"
    plot(report, image, pyplot)
    progress(f"kept: {image}")
    page = as_markdown(report, (*LABELS, *FIGURES), table_rows(report), said)
    for name in FILES[:2]:
        keep(report, page, [args.output / name])
    return report


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing to files only.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError(
            "the figure needs matplotlib, which is not installed: pip install 'remamba[eval]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise InputError when the folder cannot take a figure, or holds one already."""
    check_directory(folder, f"--output {folder}")
    taken = [name for name in FILES if (folder / name).exists()]
    if taken and not overwrite:
        raise InputError(
            f"--output {folder} holds {taken[0]} already; give another directory or --overwrite"
        )


class Contender(NamedTuple):
    """One way to answer."""

    answer: Callable[[torch.Tensor, int], Sample]
    """(prompt (1, l), new tokens) -> seconds to the first token and behind it."""
    warms_up_whole: bool
    """The decode step depends on the length of the whole answer, so the warm-up must have it."""


def contenders(shape: Shape, device: str, dtype: str, compiled: bool) -> dict[str, Contender]:
    """Name -> its way to answer; a Mamba's plain and two-stage form share weights and engine."""
    name = NAMES[shape.kind]
    if shape.kind == "llama":
        llama = build_llama(shape, device, dtype)
        options: dict[str, Any] = {"cache_implementation": "static"}
        if not compiled or not is_cuda(device):
            options["disable_compile"] = True

        def generate(prompt: torch.Tensor, new_tokens: int) -> Sample:
            mask = torch.ones_like(prompt)
            return run_generate(llama, prompt, new_tokens, attention_mask=mask, **options)

        return {name: Contender(generate, True)}
    engine = Engine(build(shape, device, dtype), slots=1)

    def answer(compression: Any, prompt: torch.Tensor, new_tokens: int) -> Sample:
        return run_engine(engine, prompt.tolist(), new_tokens, compression)

    return {
        name: Contender(partial(answer, False), False),
        f"Re{name}": Contender(partial(answer, CompressionConfig()), False),
    }


def time_answers(
    contenders: dict[str, Contender],
    prompt: torch.Tensor,
    new_tokens: int,
    repeats: int,
    device: str,
) -> dict[str, Times]:
    """Samples of whole answers, after a warm-up in which kernels and graphs are made."""
    for contender in contenders.values():
        if contender.warms_up_whole:
            contender.answer(prompt, new_tokens)
            continue
        for _ in range(3 if is_cuda(device) else 1):
            contender.answer(prompt, WARM_UP_TOKENS)
    runs = {who: partial(one.answer, prompt, new_tokens) for who, one in contenders.items()}
    return take_turns(runs, repeats, device, clock=own_clock, warm_up=0)


def told(times: Times, new_tokens: int) -> dict[str, Any]:
    """A row's figures; the first token belongs to the prefill."""
    first = [s.first or 0.0 for s in times.samples]
    decode = [s.wall for s in times.samples]
    whole = [a + b for a, b in zip(first, decode, strict=True)]
    return {
        "prefill_s": spread(first),
        "decode_tokens_per_s": spread([(new_tokens - 1) / s for s in decode]),
        "tokens_per_s": spread([new_tokens / s for s in whole]),
        "peak_gib": None if times.peak_bytes is None else times.peak_bytes / 2**30,
    }


LABELS = ("model", "shape", "input")
FIGURES = ("tokens/s", "min - max", "prefill s", "decode tokens/s", "peak GiB")


def table_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a model and length, LABELS and FIGURES."""
    models = list(dict.fromkeys(row["model"] for row in report["results"]))
    for r in sorted(report["results"], key=lambda row: models.index(row["model"])):
        speed = r["tokens_per_s"]
        yield (
            r["model"],
            r["shape"],
            str(r["input"]),
            figure(speed["median"], 4),
            f"{figure(speed['min'], 4)} - {figure(speed['max'], 4)}",
            figure(r["prefill_s"]["median"]),
            figure(r["decode_tokens_per_s"]["median"], 4),
            figure(r["peak_gib"]),
        )


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """How the figure was made, and each two-stage form beside its plain one."""
    settings = report["settings"]
    yield (
        f"Whole answers of {settings['new_tokens']} tokens, batch 1, greedy, {settings['dtype']}, "
        f"random weights; medians of {settings['repeats']}. Speed: new tokens over prefill and "
        "decode together."
    )
    compiled = settings["compile"] and is_cuda(settings["device"])
    yield (
        "Mamba and ReMamba (p = 0.18, rho = 0.009): the engine. Llama: transformers, static cache, "
        f"SDPA, decode step {'compiled' if compiled else 'not compiled'}."
    )
    yield from (f"Left out: {what}" for what in report["left_out"])
    speed = {(r["model"], r["input"]): r["tokens_per_s"]["median"] for r in report["results"]}
    for name in ("Mamba", "Mamba-2"):
        shares = [
            f"{100 * value / speed[name, length]:.0f} % at {length}"
            for (who, length), value in speed.items()
            if who == f"Re{name}"
        ]
        if shares:
            yield f"Re{name} has {', '.join(shares)} of {name}'s speed."


def plot(report: dict[str, Any], path: Path, pyplot: Any) -> None:
    """Three panels by input length: whole speed (the paper's), time of the prefill, decoding."""
    panels = (
        ("tokens_per_s", f"whole answer of {report['settings']['new_tokens']} tokens", "tokens/s"),
        ("prefill_s", "time to the first token", "s"),
        ("decode_tokens_per_s", "decoding alone", "tokens/s"),
    )
    figure_, axes = pyplot.subplots(1, len(panels), figsize=(13, 4))
    models = list(dict.fromkeys(r["model"] for r in report["results"]))
    for axis, (key, title, unit) in zip(axes, panels, strict=True):
        for i, model in enumerate(models):
            rows = [r for r in report["results"] if r["model"] == model]
            middle = [r[key]["median"] for r in rows]
            error = [
                [m - r[key]["min"] for m, r in zip(middle, rows, strict=True)],
                [r[key]["max"] - m for m, r in zip(middle, rows, strict=True)],
            ]
            axis.errorbar(
                [r["input"] for r in rows], middle, error, label=model, color=f"C{i // 2}",
                marker="os"[i % 2], linestyle=("-", "--")[i % 2], capsize=2,
            )  # fmt: skip
        axis.set(title=title, xlabel="input tokens", ylabel=unit)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    hardware = report["hardware"]
    figure_.suptitle(f"{hardware.get('gpu') or hardware['cpu']}, batch 1", fontsize=10)
    figure_.tight_layout()
    try:
        with whole_file(path) as part:
            figure_.savefig(part, dpi=150, format="png")
    finally:
        pyplot.close(figure_)
