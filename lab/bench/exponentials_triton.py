"""A kernel of exponentials alone: how many a GPU makes in a second."""

import torch
import triton
import triton.language as tl

BLOCK, REPEATS, PROGRAMS = 1024, 512, 132 * 16


@triton.jit
def _exponentials(y_ptr, REPEATS: tl.constexpr, BLOCK: tl.constexpr, ON_GPU: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = place.to(tl.float32) * 1e-9
    for _ in range(REPEATS):
        # of a negative value: the iteration settles at 0.64 and stays finite
        if ON_GPU:
            value = tl.inline_asm_elementwise(
                "{ .reg .f32 t; neg.f32 t, $1; ex2.approx.ftz.f32 $0, t; }",
                "=f,f",
                [value],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )
        else:
            value = tl.exp2(-value)
    tl.store(y_ptr + place, value)


def exponentials(y: torch.Tensor, repeats: int = REPEATS) -> int:
    """Run the kernel, y (programs * BLOCK,) float32 its result; the exponentials it made."""
    programs = y.numel() // BLOCK
    _exponentials[(programs,)](y, repeats, BLOCK, y.is_cuda, num_warps=4)
    return programs * BLOCK * repeats


def make_output(device: str) -> torch.Tensor:
    """(PROGRAMS * BLOCK,) for `exponentials`."""
    return torch.empty(PROGRAMS * BLOCK, device=device)
