"""The decode step's choices on a GPU: the tiles of its products, and whole steps.

python lab/bench/sweep_decode.py tiles --rows 1 16     microseconds and GB/s of W of each tile
python lab/bench/sweep_decode.py steps --shapes mamba-2.8b --rows 1 16     modules, fused
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lab.bench.shapes import SHAPES, build
from remamba.execution.decode import DecodeStep
from remamba.execution.graphs import Graph
from remamba.ops import use_backend
from remamba.ops.decode_layer.triton_few_rows import TILES, Tile, few_rows_product

# place in TILES -> rows of W, columns of W, and the tiles to try for one row and for several
ROLES = {
    "wide": (0, 10240, 2560),
    "narrow": (1, 2560, 5120),
    "split": (2, 192, 5120),
}
ONE_ROW = {
    "wide": itertools.product((4, 8, 16, 32), (256, 512), (4,), (2, 3, 4)),
    "narrow": itertools.product((2, 4, 8, 16), (256, 512, 1024), (4,), (2, 3, 4)),
    "split": itertools.product((4, 8, 16), (64, 128), (2, 4), (3, 4)),
}
ROWS = {
    "wide": itertools.product((16, 32, 64, 128), (64, 128), (4,), (3, 4)),
    "narrow": itertools.product((16, 32), (128, 256, 512), (2, 4), (3, 4)),
    "split": itertools.product((16, 32), (64, 128), (2, 4), (3,)),
}


def microseconds(graph: Graph) -> float:
    """Median of thirty replays on the GPU's clock."""
    times = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return sorted(times)[len(times) // 2]


def multiply(x: Tensor, weights: Tensor, out: Tensor, options: dict[str, Any]) -> None:
    for weight in weights:
        few_rows_product(x, weight, out, **options)


def sweep_tiles(rows: list[int], roles: list[str], dtype: torch.dtype) -> None:
    for b, role in itertools.product(rows, roles):
        index, n, k = ROLES[role]
        copies = 2**28 // (n * k * dtype.itemsize) + 1  # more than the caches hold
        copies = min(copies, 200)
        weights = torch.randn(copies, n, k, device="cuda", dtype=dtype)
        kind = torch.float32 if role == "wide" else dtype
        x = torch.randn(b, k, device="cuda", dtype=kind)
        norm = torch.ones(k, device="cuda", dtype=dtype)
        most = next(most for most in TILES if b <= most)
        before, found = TILES[most], []
        options = (
            {"norm_weight": norm, "eps": 1e-5} if role == "wide" else {"add": role == "narrow"}
        )
        for tile in itertools.starmap(Tile, (ONE_ROW if b == 1 else ROWS)[role]):
            if role == "split":
                tile = tile._replace(splits=before[2].splits)
            shape = (tile.splits, b, n) if role == "split" else (b, n)
            out = torch.empty(shape, device="cuda", dtype=torch.float32)
            TILES[most] = (*before[:index], tile, *before[index + 1 :])  # type: ignore[assignment]

            try:
                run = partial(multiply, x, weights, out, options)
                found.append((microseconds(Graph(run)) / copies, tile))
            except Exception as error:  # out of shared memory: not a choice
                print(role, b, tile, type(error).__name__, flush=True)
        TILES[most] = before
        for us, tile in sorted(found)[:4]:
            rate = n * k * dtype.itemsize / us / 1000
            chosen = " (now)" if tile == before[index] else ""
            print(f"{role:7s} rows {b:3d} {us:8.2f} us {rate:6.0f} GB/s {tile}{chosen}", flush=True)


@torch.no_grad()
def time_steps(shapes: list[str], rows: list[int], dtype: str) -> None:
    for name in shapes:
        model = build(SHAPES[name], "cuda", dtype)
        for b in rows:
            for how in ("modules", "fused"):
                with use_backend("torch" if how == "modules" else "triton"):
                    cache = model.new_cache()
                    ids = torch.randint(1, 500, (b, 16), device="cuda")
                    model(ids, cache_params=cache, compression=False)
                    step = DecodeStep(model)
                    step.bind(cache)
                    step.run(b)
                    (graph,) = step._graphs.values()
                    us = microseconds(graph)
                print(
                    f"{name} rows {b:3d} {how:8s} {us / 1000:7.3f} ms {b / us * 1e6:8.0f} tokens/s",
                    flush=True,
                )
        del model, step, graph, cache
        torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tiles", "steps"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--roles", nargs="+", default=list(ROLES))
    parser.add_argument("--shapes", nargs="+", default=["mamba-2.8b"])
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    if args.what == "tiles":
        sweep_tiles(args.rows, args.roles, getattr(torch, args.dtype))
    else:
        time_steps(args.shapes, args.rows, args.dtype)
