"""Documents read into memories, with progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import CompressionConfig, DocumentMemory, ReMambaForCausalLM


def read_document(
    model: ReMambaForCausalLM,
    ids: Sequence[int],
    settings: CompressionConfig | None,
    piece_length: int,
) -> tuple[DocumentMemory, float]:
    """The memory of a document, and the seconds that reading it took.

    Raises:
        InputError: with these settings the second stage reads the document again, so that no
            memory can stand for it; or the states are not finite.
    """
    import torch

    from remamba.execution.passes import not_finite

    tensor = torch.tensor([ids], device=model.device)
    begun = time.perf_counter()
    with torch.inference_mode(), _progress(model, len(ids)):
        memory = model.read(
            tensor, compression=False if settings is None else settings, piece_length=piece_length
        )
        finite = bool(torch.isfinite(memory.hidden).all())
        finite &= all(
            bool(torch.isfinite(state).all()) for state in memory.cache.tensors().values()
        )
    seconds = time.perf_counter() - begun
    if not finite:
        raise not_finite("the document's states", model.dtype)
    return memory, seconds


@contextmanager
def _progress(model: ReMambaForCausalLM, total: int) -> Iterator[None]:
    """A bar on stderr while the model reads, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("reading", BarColumn(), MofNCompleteColumn(), "tokens", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading", total=total)

        def advance(_: Any, __: Any, hidden: Any) -> None:
            progress.advance(bar, hidden.shape[1])

        hook = model.backbone.register_forward_hook(advance)
        try:
            yield
        finally:
            hook.remove()


def check_output(flag: str, path: str, overwrite: bool, *read: str | None) -> None:
    """Raise InputError unless a file can be written here: before the work, not after it.

    Args:
        flag: the option that names it.
        read: files the command reads, which it must not replace; None and "-" are none.
    """
    from remamba import files

    target = Path(path)
    files.check_output(target, f"{flag} {path}")
    if not target.exists():
        return
    for source in read:
        if source not in (None, "-") and _is_same_file(target, Path(source).expanduser()):
            raise InputError(f"{flag} {path} is the file that is read; give another name")
    if not overwrite:
        raise InputError(f"{flag} {path} exists; give --overwrite, or another name")


def _is_same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
