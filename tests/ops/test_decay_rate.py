"""A of the scans: the kernel's, torch's, and the gradient."""

import pytest
import torch

from remamba.ops import decay_rate, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(1,), (70, 16), (1100,)], ids=str)
def test_kernel_equals_torch(shape: tuple[int, ...], dtype: torch.dtype, same) -> None:
    pytest.importorskip("triton")
    A_log = torch.randn(shape, device=DEVICE).to(dtype)
    with use_backend("triton"):
        A = decay_rate(A_log)
    assert A.dtype == torch.float32
    same(A, -A_log.float().exp())
    A_log.requires_grad_()
    with use_backend("triton"):
        decay_rate(A_log).sum().backward()
    same(A_log.grad, A.to(dtype))


def test_float64_stays() -> None:
    with use_backend("triton"):
        assert decay_rate(torch.zeros(3, dtype=torch.float64, device=DEVICE)).dtype == torch.float64
