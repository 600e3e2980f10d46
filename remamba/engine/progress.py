"""Who is told while a document is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from remamba.bare_model import BaseReMamba

Progress = Callable[[int, int], None]
"""Called while a document is read, with the tokens read so far and all there are."""


@contextmanager
def telling(progress: Progress | None, model: BaseReMamba, total: int) -> Iterator[None]:
    """`progress` hears of every piece that the model reads."""
    if progress is None:
        yield
        return
    done = 0

    def advance(_: Any, __: Any, hidden: torch.Tensor) -> None:
        nonlocal done
        done += hidden.shape[0] * hidden.shape[1]
        progress(min(done, total), total)

    hook = model.backbone.register_forward_hook(advance)
    try:
        yield
    finally:
        hook.remove()
