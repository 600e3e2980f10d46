"""Where a model runs and in which numbers; importing this file costs nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remamba.errors import InputError

if TYPE_CHECKING:
    import torch

CPU_PIECE, GPU_PIECE = 2048, 16384
"""Tokens read at once: pieces that stay near a CPU's caches, and such that fill a GPU."""


def resolve_device(name: str | torch.device, option: str = "device") -> torch.device:
    """The device that a name means; "auto" is a GPU if there is one, else the CPU.

    Args:
        option: what messages call the value; the command line says "--device".

    Raises:
        InputError: it is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{option} {name} is not on this machine ({reason}); use {option} cpu, or auto"
        ) from error
    return device


def resolve_dtype(
    name: str | torch.dtype, device: torch.device, option: str = "dtype"
) -> torch.dtype:
    """The dtype that a name means on a device; "auto" is bfloat16 on a GPU that has it, or float32.

    Args:
        option: what messages call the value; the command line says "--dtype".

    Raises:
        InputError: there is no such dtype, or the device cannot compute in it.
    """
    import torch

    on_gpu = device.type == "cuda"
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    name = str(name).removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"{option} {name} is unknown; use auto, float32, bfloat16 or float16")
    reason = "the GPU has no such arithmetic" if on_gpu and not has_bfloat16 else ""
    if dtype is not torch.bfloat16 or not reason:
        try:
            ones = torch.ones(2, 2, dtype=dtype, device=device)
            torch.nn.functional.silu(torch.nn.functional.linear(ones, ones))
            return dtype
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
    raise InputError(
        f"{option} {name} cannot run on {device} of this machine ({reason}); use {option} float32"
    )
