"""How fast are prefill and decoding, beside transformers and beside the bare matrix products?

Models of a published shape get random weights. For each shape it is first checked that remamba and
transformers, on the very same weights, give the same logits, in the prefill and along forced
tokens, and that stage 2 is a pass of transformers over the spliced embeddings; if they do not, no
speed is told and the exit code is 1. Then the contenders are timed in turns:

    plain         remamba with compression off
    two-stages    remamba with the paper's compression (p = 0.18, rho = 0.009): stage 1 and stage 2
    transformers  its own model class, by the path it takes as installed
    mambapy       the same with use_mambapy (Mamba only, --mambapy, needs the mambapy package)
    products      F.linear of every projection of every layer, and the lm_head on the last token:
                  what would be left if all the rest cost nothing

A prefill reads the whole prompt into a cache and gives the last token's logits. Decoding is timed
by forced steps from a cache, the head included, so sampling is in nobody's time. A step costs the
same behind a prompt of any length, as a Mamba's cache is its state.

Examples:

    python benchmarks/bench_generate.py --shapes mamba-130m --lengths 512 --repeats 3
    python benchmarks/bench_generate.py --save cpu
    python benchmarks/bench_generate.py --shapes mamba-2.8b mamba2-2.7b --lengths 2048 16384 \\
        --device cuda --dtype bfloat16 --save h100

Stdout's last line is one JSON object; progress and the table go to stderr. Whoever times should
have the cores to themselves: `cores` in the table is CPU time over wall time, and well below
--threads it tells of a neighbour (or of work that runs on one thread). Beside a neighbour set
OMP_WAIT_POLICY=passive: threads that wait for each other otherwise spin, and short operations by
two threads then take ten times as long. Such variables are kept with the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from contenders import (
    CHECK_LENGTH,
    CHECK_STEPS,
    DECODE_PROMPT,
    LIMITS,
    SHAPES,
    WrongLogits,
    build,
    check,
    decode,
    peer_bytes,
    prefill,
    products,
    shapes_parser,
    with_mambapy,
)
from measure import (
    Times,
    begin,
    free_bytes,
    head_lines,
    keep,
    positive,
    prepare_device,
    progress,
    ratio,
    result_paths,
    show_table,
    spread,
    take_turns,
)
from torch import Tensor, nn

from remamba import CompressionConfig, ReMambaForCausalLM
from remamba.errors import InputError

# times as fast as transformers, on a CPU in float32: (shape, what, length of the prompt)
GOALS = {
    ("mamba-130m", "prefill", 512): 2.5,
    ("mamba-130m", "prefill", 2048): 4.0,
    ("mamba-130m", "decode", DECODE_PROMPT): 1.3,
    ("mamba2-130m", "prefill", 512): 2.0,
    ("mamba2-130m", "prefill", 2048): 2.5,
    ("mamba2-130m", "decode", DECODE_PROMPT): 1.3,
}


def time_prefill(
    name: str, ours: ReMambaForCausalLM, theirs: nn.Module, length: int, args: argparse.Namespace
) -> dict[str, Times]:
    ids = _random_ids(ours, args.batch, length)
    contenders: dict[str, Callable[[], object]] = {
        "plain": partial(prefill, ours, ids, compression=False)
    }
    if "remamba" in args.what:
        contenders["two-stages"] = partial(prefill, ours, ids, compression=CompressionConfig())
    if "prefill" in args.what:
        is_mamba = SHAPES[name].kind == "mamba"
        peers = {"transformers": partial(prefill, theirs, ids)}
        if args.mambapy and is_mamba:
            peers["mambapy"] = partial(with_mambapy, theirs, ids)
        for peer, run in peers.items():
            need = peer_bytes(SHAPES[name], args.batch, length, peer == "mambapy")
            if need > 0.9 * free_bytes(args.device):
                progress(
                    f"{name} prefill {length}: {peer} is left out, as it needs about "
                    f"{need / 2**30:.1f} GiB of memory"
                )
            else:
                contenders[peer] = run
        contenders["products"] = products(ours, args.batch, length)
    return take_turns(contenders, args.repeats, args.device, f"{name} prefill {length}")


def time_decode(
    name: str, ours: ReMambaForCausalLM, theirs: nn.Module, args: argparse.Namespace
) -> dict[str, Times]:
    prompt = _random_ids(ours, args.batch, DECODE_PROMPT)
    ids = _random_ids(ours, args.batch, args.new_tokens)
    caches = [
        prefill(ours, prompt, compression=False).cache_params,
        prefill(theirs, prompt).cache_params,
    ]
    step = products(ours, args.batch, 1)
    contenders: dict[str, Callable[[], object]] = {
        "plain": partial(decode, ours, caches[0], ids),
        "transformers": partial(decode, theirs, caches[1], ids),
        "products": lambda: [step() for _ in range(args.new_tokens)],
    }
    return take_turns(contenders, args.repeats, args.device, f"{name} decode")


def _random_ids(ours: ReMambaForCausalLM, batch: int, length: int) -> Tensor:
    return torch.randint(ours.config.vocab_size, (batch, length), device=ours.lm_head.weight.device)


def compare(
    name: str, what: str, length: int, times: dict[str, Times], args: argparse.Namespace
) -> dict[str, Any]:
    """The ratios of one run, each within its turn."""
    plain = times["plain"]
    found: dict[str, Any] = {"shape": name, "what": what, "prompt": length, "batch": args.batch}
    for peer in ("transformers", "mambapy"):
        if peer in times:
            found[f"times_as_fast_as_{peer}"] = ratio(times[peer], plain)
    goal = GOALS.get((name, what, length))
    if goal and "transformers" in times and args.device == "cpu" and args.dtype == "float32":
        found["goal"] = goal
        found["met"] = found["times_as_fast_as_transformers"]["median"] >= goal
    if "products" in times:
        over = ratio(plain, times["products"])
        found["plain_over_products"] = over
        found["share_above_products"] = spread([1 - 1 / v for v in over.values()])
    if "two-stages" in times:
        found["two_stages_over_plain"] = ratio(times["two-stages"], plain)
    return found


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Check, time and compare every shape; the report."""
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "save")}
    report = {**begin(__file__, argv, args.device), "settings": settings}
    report["shapes"] = {name: asdict(SHAPES[name]) for name in args.shapes}
    kernels = {name: find_spec(name) is not None for name in ("mamba_ssm", "causal_conv1d")}
    report["transformers_kernels_installed"] = kernels
    report["compression"] = CompressionConfig().to_dict()
    report.update(checks=[], results=[], comparisons=[])
    for name in args.shapes:
        progress(f"{name}: random weights")
        ours, theirs = build(SHAPES[name], args.device, args.dtype, args.seed)
        ids = _random_ids(ours, 1, CHECK_LENGTH + CHECK_STEPS)
        for found in check(ours, theirs, ids, LIMITS[args.dtype]):
            report["checks"].append({"shape": name, **found})
        runs = []
        if "prefill" in args.what or "remamba" in args.what:
            for length in args.lengths:
                times = time_prefill(name, ours, theirs, length, args)
                runs.append(("prefill", length, length, times))
        if "decode" in args.what:
            times = time_decode(name, ours, theirs, args)
            runs.append(("decode", DECODE_PROMPT, args.new_tokens, times))
        for what, length, tokens, times in runs:
            row = {"shape": name, "what": what, "prompt": length, "batch": args.batch}
            for who, taken in times.items():
                rate = args.batch * tokens / taken.median
                report["results"].append(
                    {**row, "who": who, **taken.as_dict(), "tokens_per_s": rate}
                )
            report["comparisons"].append(compare(name, what, length, times, args))
        del ours, theirs
    return report


LABELS = ("shape", "what", "prompt", "who")
FIGURES = ("median s", "min - max s", "tokens/s", "cores", "/ plain")


def rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a contender and run, LABELS and FIGURES."""
    for r in report["results"]:
        same = [
            s["median_s"]
            for s in report["results"]
            if s["who"] == "plain" and all(s[k] == r[k] for k in ("shape", "what", "prompt"))
        ]
        yield (
            r["shape"],
            r["what"],
            str(r["prompt"]),
            r["who"],
            f"{r['median_s']:.3g}",
            f"{r['min_s']:.3g} - {r['max_s']:.3g}",
            f"{r['tokens_per_s']:.1f}",
            f"{r['cores_used']:.1f}",
            f"{r['median_s'] / same[0]:.2f}",
        )


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """What the figures say, one sentence a run."""
    for c in report["comparisons"]:
        said = []
        for peer in ("transformers", "mambapy"):
            if found := c.get(f"times_as_fast_as_{peer}"):
                told = f"{found['median']:.2f} times as fast as {peer} ({_range(found)})"
                if peer == "transformers" and "goal" in c:
                    told += f", goal {c['goal']:g} {'met' if c['met'] else 'MISSED'}"
                said.append(told)
        if found := c.get("plain_over_products"):
            share = c["share_above_products"]["median"]
            said.append(
                f"{found['median']:.2f} times the matrix products ({_range(found)}): "
                f"{share:.0%} of the time lies above them"
            )
        if found := c.get("two_stages_over_plain"):
            said.append(f"two stages take {found['median']:.2f} times plain ({_range(found)})")
        yield f"{c['shape']} {c['what']} {c['prompt']}: {'; '.join(said)}."


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:.2f} - {values['max']:.2f}"


def as_markdown(report: dict[str, Any]) -> str:
    lines = head_lines(report)
    columns = (*LABELS, *FIGURES)
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    lines += ["", *(f"- {sentence}" for sentence in sentences(report)), ""]
    worst = max(check["relative_error"] for check in report["checks"])
    settings = report["settings"]
    lines.append(
        f"Medians of {settings['repeats']} interleaved turns, {settings['dtype']}, batch "
        f"{settings['batch']}, random weights. Checked first: logits equal transformers' on the "
        f"same weights, largest relative error {worst:.1e}."
    )
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = shapes_parser(__doc__)
    add = parser.add_argument
    add("--what", nargs="+", default=["prefill", "decode", "remamba"],
        choices=("prefill", "decode", "remamba"),
        help="remamba puts the two stages beside the plain prefill (default: all)")  # fmt: skip
    add("--lengths", nargs="+", type=positive, default=[512, 2048], metavar="TOKENS",
        help="prompts of the prefill (default: 512 2048)")  # fmt: skip
    add("--new-tokens", type=positive, default=32, metavar="N",
        help="forced steps in one turn of decoding (default: 32)")  # fmt: skip
    add("--batch", type=positive, default=1, metavar="ROWS", help="rows at once (default: 1)")
    add("--repeats", type=positive, default=5, metavar="N",
        help="turns of each contender, after one to warm up (default: 5)")  # fmt: skip
    add("--threads", type=positive, default=2, metavar="N",
        help="CPU threads of every contender (default: 2)")  # fmt: skip
    add("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add("--dtype", default="float32", choices=tuple(LIMITS), help="of all weights")
    add("--mambapy", action="store_true",
        help="also time transformers with use_mambapy (Mamba shapes)")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    add("--output", type=Path, metavar="FILE.json", help="also write the report here")
    add("--save", nargs="?", const="generate", metavar="NAME",
        help="keep it as benchmarks/results/NAME_DATE.json and .md (NAME: generate)")  # fmt: skip
    return parser


def validate(args: argparse.Namespace) -> None:
    """Raise InputError for what cannot be run, before anything is built."""
    for name in args.shapes:
        if name not in SHAPES:
            raise InputError(f"--shapes {name} is unknown; there are {', '.join(SHAPES)}")
    if args.mambapy and find_spec("mambapy") is None:
        raise InputError("--mambapy: the package is not installed; pip install mambapy")
    prepare_device(args.device, args.threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        validate(args)
        paths = result_paths(args.save, args.output)
        with torch.no_grad():
            report = run(args, argv)
    except InputError as error:
        print(f"bench_generate.py: {error}", file=sys.stderr)
        return 2
    except WrongLogits as error:
        print(f"bench_generate.py: {error}", file=sys.stderr)
        return 1
    show_table((*LABELS, *FIGURES), len(LABELS), rows(report))
    for sentence in sentences(report):
        progress(sentence)
    keep(report, as_markdown(report), paths)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
