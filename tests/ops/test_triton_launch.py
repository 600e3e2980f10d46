"""Kernels launched past Triton's wrapper give what Triton's own launch gives."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu
triton = pytest.importorskip("triton")
tl = triton.language

from remamba.ops.triton_launch import Launched  # noqa: E402


@triton.jit
def _kernel(x, y, out, n, step, scale, WHICH, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i * step, mask=i < n, other=0.0).to(tl.float32) * scale
    if y is not None:
        v += tl.load(y + i, mask=i < n, other=0.0).to(tl.float32)
    if WHICH:
        v = -v
    tl.store(out + i, v, mask=i < n)


CALLS = [
    # n, step, offset of x, dtype of x, with y, which, block
    (1000, 1, 0, torch.float32, True, True, 128),
    (1000, 2, 0, torch.float32, True, True, 128),
    (1000, 16, 0, torch.float32, True, True, 128),
    (1000, 17, 0, torch.float32, True, True, 128),
    (1024, 1, 0, torch.float32, True, True, 128),
    (1, 1, 0, torch.float32, True, True, 128),
    (1000, 1, 1, torch.float32, True, True, 128),
    (1000, 1, 0, torch.bfloat16, True, True, 128),
    (1000, 1, 3, torch.bfloat16, False, True, 128),
    (1000, 1, 0, torch.float32, False, False, 256),
    (1000, 2**31 + 5, 0, torch.float32, False, False, 256),
]


def test_equals_tritons_own_launch() -> None:
    """The calls come three times, in turns, so that each meets what others left compiled."""
    quick = Launched(_kernel)
    wide = torch.randn(20_000, device="cuda")
    y = torch.randn(2000, device="cuda")
    for _ in range(3):
        for n, step, offset, dtype, with_y, which, block in CALLS:
            x = wide.to(dtype)[offset:]
            read = 1 if step > 2**31 else n  # further places lie outside of x
            results = []
            for kernel in (_kernel, quick):
                out = torch.zeros(n, device="cuda")
                kernel[(triton.cdiv(n, block),)](
                    x, y if with_y else None, out, read, step, 0.5, which, BLOCK=block
                )
                results.append(out)
            assert torch.equal(*results)
            places = torch.arange(read, device="cuda") * step
            expected = x[places].float() * 0.5 + (y[:read] if with_y else 0)
            torch.testing.assert_close(results[1][:read], -expected if which else expected)
    assert 6 <= len(quick._compiled) <= len(CALLS)
