"""How long streams wait for their next token while long documents enter the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from lab.bench.measure import check_counts, is_cuda, prepare, progress
from lab.bench.passes import random_ids
from lab.bench.report import as_markdown, begin, figure, keep, result_paths, show_table
from lab.bench.settings import GapsArgs
from lab.bench.shapes import SHAPES, build
from remamba.checkpoints.published import load_any
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.engine.loading import CPU_PIECE, GPU_PIECE
from remamba.engine.request import Job

LABELS = ("model", "documents", "tokens", "at once")
FIGURES = ("before ms", "median ms", "p99 ms", "longest ms", "tokens/s")
QUIET_STEPS = 60
"""Steps that are timed before the first document comes."""
ENDLESS = SamplingOptions(max_new_tokens=10**9, ignore_eos=True)
QUESTION = 20
"""Tokens of the question behind a document."""


def run(args: GapsArgs) -> dict[str, Any]:
    """The gaps for each number of tokens at once; the report, its table shown and kept.

    Raises:
        InputError: an option cannot be used here.
    """
    check_counts(
        tokens=args.tokens, documents=args.documents, streams=args.streams, at_once=args.at_once
    )
    device, dtype = prepare(args)
    paths = result_paths(args.save, args.output)
    report = begin("gaps", args, device, dtype=dtype)
    model: Any
    if args.model in SHAPES:
        model = build(SHAPES[args.model], device, dtype)
    else:
        model = load_any(args.model, getattr(torch, dtype)).to(device)  # type: ignore[arg-type]
    defaults = (1024, 2048, 4096, 8192) if is_cuda(device) else (128, 256, 512)
    report["results"] = []
    for at_once in args.at_once or defaults:
        report["results"].append(measure(model, args, at_once))
        progress(f"{at_once} tokens at once: done")
    show_table((*LABELS, *FIGURES), len(LABELS), table_rows(report))
    keep(report, as_markdown(report, (*LABELS, *FIGURES), table_rows(report)), paths)
    return report


def measure(model: Any, args: GapsArgs, at_once: int) -> dict[str, Any]:
    """Seconds between two tokens of the streams, before the documents come and until all are in."""
    on_gpu = is_cuda(str(model.device))
    slots = args.streams + args.documents
    piece = GPU_PIECE if on_gpu else CPU_PIECE
    engine = Engine(model, slots=slots, piece_length=piece, step_tokens=at_once)
    vocab = model.config.vocab_size

    def ask(tokens: int) -> Job:
        ids = random_ids(vocab, 1, tokens + QUESTION, "cpu")[0].tolist()
        options = SamplingOptions(max_new_tokens=1)
        given = Request(
            document=ids[:tokens], question=ids[tokens:], options=options, method=args.method
        )
        return engine.submit(given)

    for _ in range(args.streams):
        prompt = random_ids(vocab, 1, QUESTION, "cpu")[0].tolist()
        engine.submit(Request(prompt=prompt, options=ENDLESS, method="plain"))
    # graphs are captured when a shape comes for the second time
    list(_gaps(engine, [ask(4 * at_once), ask(4 * at_once)], 0))
    before = list(_gaps(engine, [], QUIET_STEPS))
    begun = time.perf_counter()
    jobs = [ask(args.tokens) for _ in range(args.documents)]
    during = list(_gaps(engine, jobs, 0))
    seconds = time.perf_counter() - begun
    return {
        "model": args.model,
        "documents": args.documents,
        "tokens": args.tokens,
        "at_once": at_once,
        "method": args.method,
        "before_s": _share(before, 0.5),
        "median_s": _share(during, 0.5),
        "p99_s": _share(during, 0.99),
        "longest_s": max(during),
        "tokens_per_s": args.documents * args.tokens / seconds,
        "samples_s": {"before": before, "during": during},
    }


def _gaps(engine: Engine, jobs: list[Job], least: int) -> Iterator[float]:
    """Seconds that each step took, until the jobs have ended; at least so many steps."""
    count = 0
    while count < least or not all(job.is_finished for job in jobs):
        begun = time.perf_counter()
        engine.step()
        yield time.perf_counter() - begun
        count += 1
    for job in jobs:
        if job.error is not None:
            raise job.error


def _share(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)]


def table_rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """The results as the rows of a table."""
    for found in report["results"]:
        labels = (found["model"], found["documents"], found["tokens"], found["at_once"])
        times = [found[f"{name}_s"] * 1e3 for name in ("before", "median", "p99", "longest")]
        yield [*map(str, labels), *map(figure, times), figure(found["tokens_per_s"])]
