"""How fast are prefill and decoding, beside the peers and beside the bare matrix products?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from lab.bench.ceilings import Ceilings, Work, describe, measure_ceilings
from lab.bench.check import (
    CHECK_LENGTH,
    check_shape,
    compare_logits,
    judge,
    limit_of_logits,
    relative_error,
)
from lab.bench.measure import (
    Times,
    check_counts,
    free_bytes,
    is_cuda,
    own_clock,
    prepare,
    progress,
    ratio,
    take_turns,
)
from lab.bench.passes import (
    decode_forced,
    decode_work,
    prefill,
    prefill_work,
    products,
    random_ids,
    run_engine,
    run_generate,
    run_mamba_ssm,
    spans,
    with_mambapy,
)
from lab.bench.report import as_markdown, begin, figure, keep, result_paths, show_table
from lab.bench.settings import GenerateArgs
from lab.bench.shapes import (
    SHAPES,
    build,
    build_mamba_ssm,
    build_transformers,
    check_names,
    has_mamba_ssm,
    peer_bytes,
)
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import Engine
from remamba.errors import InputError
from remamba.pretrained import quiet_transformers

DECODE_PROMPT = 64
"""Tokens before a decoding; a step costs the same behind any prompt, its cache being a state."""
FORCED_STEPS = 32
PEERS = ("transformers", "mamba_ssm", "mambapy")


class Bench:
    """One shape's contenders on one machine."""

    def __init__(self, name: str, args: GenerateArgs, device: str, dtype: str, ceilings: Ceilings):
        self.name, self.args, self.device, self.ceilings = name, args, device, ceilings
        self.shape = SHAPES[name]
        self.repeats = args.repeats or (7 if is_cuda(device) else 5)
        self.budget = 4.0 if args.budget is None and is_cuda(device) else args.budget
        self.checks: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.comparisons: list[dict[str, Any]] = []
        progress(f"{name}: random weights")
        self.ours = build(self.shape, device, dtype)
        self.peers: dict[str, Any] = {}
        if args.peers:
            self._add_peers(dtype)

    def _add_peers(self, dtype: str) -> None:
        """Peers on our weights, once they are known to compute the same."""
        self.checks += [
            {"shape": self.name, **row} for row in check_shape(self.shape, self.device, dtype)
        ]
        theirs = self.peers["transformers"] = build_transformers(self.shape, self.ours)
        row = compare_logits(self.ours, theirs, dtype)
        self.checks.append({"shape": self.name, "dtype": dtype, "peer": "transformers", **row})
        if has_mamba_ssm() and is_cuda(self.device):
            theirs = self.peers["mamba_ssm"] = build_mamba_ssm(self.shape, self.ours)
            ids = self.ids(1, CHECK_LENGTH)
            a = prefill(self.ours, ids, compression=False).logits
            b = theirs(ids, num_last_tokens=1).logits
            errors = {f"prefill of {CHECK_LENGTH} tokens": relative_error(a, b)}
            row = judge(f"{self.name}, mamba_ssm", errors, limit_of_logits(dtype))
            self.checks.append({"shape": self.name, "dtype": dtype, "peer": "mamba_ssm", **row})

    def ids(self, batch: int, length: int) -> torch.Tensor:
        return random_ids(self.shape.vocab_size, batch, length, self.device)

    def time_prefill(self, length: int) -> None:
        """The whole prompt into a cache, and the last token's logits."""
        ids, ours = self.ids(1, length), self.ours
        contenders: dict[str, Callable[[], object]] = {
            "plain": partial(prefill, ours, ids, compression=False),
            "two-stages": partial(prefill, ours, ids, compression=CompressionConfig()),
        }
        for peer, model in self.peers.items():
            if self._is_affordable(peer, length):
                contenders[peer] = (
                    partial(model, ids, num_last_tokens=1)
                    if peer == "mamba_ssm"
                    else partial(prefill, model, ids)
                )
        if self.args.mambapy and "transformers" in contenders and self.shape.kind == "mamba":
            run = contenders["transformers"]
            contenders["mambapy"] = partial(with_mambapy, self.peers["transformers"], run)
        contenders["products"] = products(ours, 1, length)
        title = f"{self.name} prefill {length}"
        times = take_turns(contenders, self.repeats, self.device, title, budget=self.budget)
        self._add("prefill", length, 1, dict.fromkeys(times, length), times)

    def _is_affordable(self, peer: str, length: int) -> bool:
        """False, and said, for what needs too much memory or (by a shorter prompt) time."""
        if peer == "mamba_ssm":
            return True
        why = ""
        need = peer_bytes(self.shape, 1, length, self.args.mambapy)
        if need > 0.9 * free_bytes(self.device):
            why = f"about {need / 2**30:.1f} GiB of memory"
        shorter = [r for r in self.results if r["who"] == peer and r["what"] == "prefill"]
        if shorter and self.budget is not None:
            seconds = shorter[-1]["median_s"] * length / shorter[-1]["prompt"]
            if seconds > self.budget:
                why = f"about {seconds:.0f} s a prefill (--budget {self.budget:g})"
        if why:
            progress(f"{self.name} prefill {length}: {peer} is left out, as it needs {why}")
        return not why

    def time_decode(self, batch: int) -> None:
        """Tokens behind a short prompt, the head included."""
        n = self.args.new_tokens or (128 if is_cuda(self.device) else 32)
        if n < 2:
            raise InputError(f"--new-tokens {n} must be at least 2: the first is the prefill's")
        forced_steps = min(n, FORCED_STEPS)
        prompt, forced = self.ids(batch, DECODE_PROMPT), self.ids(batch, forced_steps)
        title, ours = f"{self.name} decode, batch {batch}", self.ours
        engine = Engine(ours, slots=batch)
        answers: dict[str, Callable[[], Any]] = {
            "engine": partial(run_engine, engine, prompt.tolist(), n, False),
            "generate": partial(run_generate, ours, prompt, n, compression=False),
        }
        if "mamba_ssm" in self.peers:
            answers["mamba_ssm"] = partial(run_mamba_ssm, self.peers["mamba_ssm"], prompt, n)
        times = take_turns(
            answers, self.repeats, self.device, title, clock=own_clock, budget=self.budget
        )
        tokens = dict.fromkeys(times, n - 1)

        step = products(ours, batch, 1)
        steps: dict[str, Callable[[], Any]] = {
            "products": lambda: [step() for _ in range(forced_steps)]
        }
        cache = prefill(ours, prompt, compression=False).cache_params
        steps["plain"] = partial(decode_forced, ours, cache, forced)
        if "transformers" in self.peers:
            peer = self.peers["transformers"]
            theirs = prefill(peer, prompt).cache_params
            steps["transformers"] = partial(decode_forced, peer, theirs, forced)
        times |= take_turns(steps, self.repeats, self.device, title, budget=self.budget)
        tokens |= dict.fromkeys(steps, forced_steps)
        self._add("decode", DECODE_PROMPT, batch, tokens, times)

    def _add(
        self, what: str, prompt: int, batch: int, tokens: dict[str, int], times: dict[str, Times]
    ) -> None:
        """Rows of figures, and the ratios of the run, each within its turn."""
        key = {"shape": self.name, "what": what, "prompt": prompt, "batch": batch}
        for who, taken in times.items():
            row = {**key, "who": who, **taken.as_dict()}
            row["tokens_per_s"] = batch * tokens[who] / taken.median
            work: Work = (
                prefill_work(self.ours, batch, prompt, who)
                if what == "prefill"
                else decode_work(self.ours, batch)
            )
            floor, row["floor_by"] = work.floor(self.ceilings)
            row["floor_s"] = floor if what == "prefill" else floor * tokens[who]
            row["over_floor"] = taken.median / row["floor_s"]
            if who == "two-stages":
                d, size = self.shape.hidden_size, self.ours.lm_head.weight.element_size()
                row["span_gib"] = spans(prompt)[0] * d * size / 2**30
            self.results.append(row)
        found: dict[str, Any] = dict(key)
        for peer in PEERS:
            if peer in times and what == "prefill":
                found[f"times_as_fast_as_{peer}"] = ratio(times[peer], times["plain"])
        if what == "decode" and "transformers" in times:
            found["times_as_fast_as_transformers"] = ratio(times["transformers"], times["plain"])
        if what == "decode" and "mamba_ssm" in times:
            found["engine_as_fast_as_mamba_ssm"] = ratio(times["mamba_ssm"], times["engine"])
        found["plain_over_products"] = ratio(times["plain"], times["products"])
        if "two-stages" in times:
            found["two_stages_over_plain"] = ratio(times["two-stages"], times["plain"])
        self.comparisons.append(found)


@torch.no_grad()
def run(args: GenerateArgs) -> dict[str, Any]:
    """Check, time and compare every shape; the report, its table shown and kept.

    Raises:
        InputError: an option cannot be used here.
        WrongResults: a peer computes something else.
    """
    check_counts(
        lengths=args.lengths, batches=args.batches, new_tokens=args.new_tokens, repeats=args.repeats
    )
    check_names(args.shapes)
    if args.mambapy and find_spec("mambapy") is None:
        raise InputError("--mambapy: the package is not installed; pip install mambapy")
    device, dtype = prepare(args)
    on_gpu = is_cuda(device)
    paths = result_paths(args.save, args.output)
    shapes = args.shapes or (
        ("mamba-2.8b", "mamba2-2.7b", "mamba-130m") if on_gpu else ("mamba-130m", "mamba2-130m")
    )
    lengths = args.lengths or ((1024, 2048, 4096, 6144, 8192) if on_gpu else (512, 2048))
    batches = args.batches or ((1, 16) if on_gpu else (1,))
    report = begin(
        "generate", args, device, dtype=dtype, shapes=shapes, lengths=lengths, batches=batches
    )
    report["shapes"] = {name: asdict(SHAPES[name]) for name in shapes}
    report["compression"] = CompressionConfig().to_dict()
    ceilings = measure_ceilings(device, dtype)
    report.update(ceilings=ceilings.as_dict(), checks=[], results=[], comparisons=[])
    with quiet_transformers():
        for name in shapes:
            bench = Bench(name, args, device, dtype, ceilings)
            for length in lengths if "prefill" in args.what else ():
                bench.time_prefill(length)
            for batch in batches if "decode" in args.what else ():
                bench.time_decode(batch)
            for part in ("checks", "results", "comparisons"):
                report[part] += getattr(bench, part)
            del bench
            # what is finished is kept, whatever the next shape meets
            said = [describe(ceilings), *sentences(report)]
            keep(report, as_markdown(report, (*LABELS, *FIGURES), table_rows(report), said), paths)
            if on_gpu:
                torch.cuda.empty_cache()
    show_table((*LABELS, *FIGURES), len(LABELS), table_rows(report))
    for sentence in said:
        progress(sentence)
    return report


LABELS = ("shape", "what", "prompt", "batch", "who")
FIGURES = ("median s", "min - max s", "tokens/s", "first s", "/ floor", "peak GiB", "cores")


def table_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a contender and run, LABELS and FIGURES."""
    on_gpu = is_cuda(report["settings"]["device"])
    for r in report["results"]:
        key = tuple(str(r[name]) for name in LABELS[:-1])
        yield (
            *key,
            r["who"],
            figure(r["median_s"]),
            f"{figure(r['min_s'])} - {figure(r['max_s'])}",
            figure(r["tokens_per_s"], 4),
            figure(r.get("first_s")),
            figure(r["over_floor"]),
            figure(r.get("peak_gib")),
            "-" if on_gpu or "cores_used" not in r else f"{r['cores_used']:.1f}",
        )


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """What the figures say, one sentence a run."""
    for c in report["comparisons"]:
        said = []
        for peer in PEERS:
            if found := c.get(f"times_as_fast_as_{peer}"):
                said.append(f"{found['median']:.2f} times as fast as {peer} ({_range(found)})")
        if found := c.get("engine_as_fast_as_mamba_ssm"):
            said.append(f"the engine {found['median']:.2f} times as fast as mamba_ssm")
        if found := c.get("plain_over_products"):
            said.append(f"{found['median']:.2f} times the matrix products ({_range(found)})")
        if found := c.get("two_stages_over_plain"):
            said.append(f"two stages take {found['median']:.2f} times plain ({_range(found)})")
        batch = f", batch {c['batch']}" if c["batch"] > 1 else ""
        yield f"{c['shape']} {c['what']} {c['prompt']}{batch}: {'; '.join(said)}."
    checks = [c for c in report["checks"] if not c.get("beyond")]
    if checks:
        exact = [c["relative_error"] for c in checks if c["dtype"] == "float32"]
        worst = max(check["relative_error"] for check in checks)
        yield (
            f"Logits are equal on the same weights: relative error up to {max(exact):.1e} in "
            f"float32 (a few layers), {worst:.1e} in all."
        )
    for c in report["checks"]:
        if c.get("beyond"):
            yield (
                f"{c['shape']}: {c['peer']} itself differs by {c['relative_error']:.1e} in "
                f"{c['dtype']} ({c['of']}), where our kernels equal our torch forms."
            )


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:.2f} - {values['max']:.2f}"
