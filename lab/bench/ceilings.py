"""What the machine can do at most: bytes copied, products and exponentials in a second.

A floor is the time that the bytes, products or exponentials of a piece of work take at these rates,
whichever is the longest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch

from lab.bench.measure import device_clock, is_cuda, progress

REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """Rates of this machine, measured."""

    copy: float
    """Bytes a second read and written by a copy of a large tensor."""
    products: float
    """Floating-point operations a second of a large square product in the dtype timed."""
    exponentials: float
    """2^x a second in float32."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Work(NamedTuple):
    """What any form of an op must do."""

    bytes: float = 0
    products: float = 0
    """Multiplications and additions of its matrix products."""
    exponentials: float = 0
    """Those, logarithms and reciprocals: the operations of the GPU's special-function units."""

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """Seconds that it takes at least, and which of the three sets them."""
        times = {
            "bytes": self.bytes / ceilings.copy,
            "products": self.products / ceilings.products,
            "exponentials": self.exponentials / ceilings.exponentials,
        }
        what = max(times, key=lambda name: times[name])
        return times[what], what


def measure_ceilings(device: str, dtype: str) -> Ceilings:
    """The rates, each the median of a few runs."""
    progress(f"ceilings of {device}: copy, products in {dtype}, exponentials")
    on_gpu = is_cuda(device)
    clock = device_clock(device)

    def rate(amount: float, run: Callable[[], object]) -> float:
        run()
        return amount / statistics.median(clock(run, device).wall for _ in range(REPEATS))

    found = [rate(*_copy(2**30 if on_gpu else 2**26, device))]
    found.append(rate(*_product(8192 if on_gpu else 768, device, getattr(torch, dtype))))
    found.append(rate(*(_exponentials_on_gpu(device) if on_gpu else _exponentials_on_cpu())))
    return Ceilings(*found)


def _copy(size: int, device: str) -> tuple[float, Callable[[], object]]:
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size, partial(target.copy_, source)


def _product(side: int, device: str, dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3, partial(torch.matmul, a, b)


def _exponentials_on_gpu(device: str) -> tuple[float, Callable[[], object]]:
    from lab.bench.exponentials_triton import exponentials, make_output

    y = make_output(device)
    return exponentials(y), partial(exponentials, y)


def _exponentials_on_cpu(repeats: int = 64) -> tuple[float, Callable[[], object]]:
    # few enough to stay in the cache
    y = torch.ones(2**14)
    return y.numel() * repeats, lambda: [torch.exp2(-y, out=y) for _ in range(repeats)]


def describe(ceilings: Ceilings) -> str:
    """The rates, for a person."""
    return (
        f"ceilings: copy {ceilings.copy / 1e9:,.0f} GB/s, products {ceilings.products / 1e9:,.0f} "
        f"GFLOP/s, exponentials {ceilings.exponentials / 1e9:,.1f} G/s"
    )
