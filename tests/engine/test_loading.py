"""Where a model runs and in which numbers: what "auto" means, and what is refused."""

from __future__ import annotations

import pytest
import torch

from remamba import InputError
from remamba.engine.loading import resolve_device, resolve_dtype

CPU = torch.device("cpu")


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    assert resolve_dtype(torch.float16, CPU) is torch.float16

    def no_such_kernel(*_: object) -> torch.Tensor:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "linear", no_such_kernel)
    with pytest.raises(InputError, match=r"^dtype float16 cannot run on cpu .*; use dtype float32"):
        resolve_dtype("float16", CPU)
    with pytest.raises(InputError, match=r"^--dtype float16 cannot run on cpu"):
        resolve_dtype("float16", CPU, "--dtype")


@pytest.mark.parametrize("name", ["int8", "float9", "nn", torch.bool], ids=str)
def test_unknown_dtypes(name: str | torch.dtype) -> None:
    with pytest.raises(InputError, match="is unknown; use auto, float32, bfloat16 or float16"):
        resolve_dtype(name, CPU)


def test_devices() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device(CPU) == CPU
    with pytest.raises(InputError, match=r"^device abacus is not on this machine .*; use device"):
        resolve_device("abacus")
    with pytest.raises(InputError, match=r"^--device cuda:77 is not on this machine"):
        resolve_device("cuda:77", "--device")
