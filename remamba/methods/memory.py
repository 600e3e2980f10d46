"""The memory of a document: what its first reading leaves for later questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.methods.base import Method, former_method, method_of
from remamba.methods.selection import Span
from remamba.model.states import StateCache, check_fingerprint, read_tensors, write_tensors

MEMORY_FORMAT = "remamba-memory-1"


@dataclass
class DocumentMemory:
    """A document read once (stage 1), from which many questions are answered.

    Holds b documents. A row of questions uses document `row // (rows // b)`.
    """

    hidden: Tensor
    """(b, m, d) last-layer states of the span, right-padded."""
    span: Span
    """The positions of the document to compress."""
    lengths: Tensor
    """(b,) tokens of each document; on the host."""
    cache: StateCache
    """States after each document's last token."""
    method: Method
    """How it was read, and how questions are answered where nothing else is asked for."""
    fingerprint: str = ""
    """The model it belongs to; empty when that was not asked for."""
    input_ids: Tensor | None = field(default=None, repr=False)
    """(b, l) the document's tokens, right-padded, if they were given as ids."""

    @property
    def batch_size(self) -> int:
        """Rows of states: documents, or the chunks of one."""
        return self.lengths.shape[0]

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        return 1 if self.method.name == "chunks" else self.batch_size

    @classmethod
    def side_by_side(cls, parts: Sequence[DocumentMemory]) -> DocumentMemory:
        """The rows of memories without spans (of `plain`, or of chunks), in their order."""
        first = parts[0]
        if len(parts) == 1:
            return first
        lengths = torch.cat([part.lengths for part in parts])
        ids = [part.input_ids for part in parts if part.input_ids is not None]
        width = int(lengths.max())
        joined = [torch.nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in ids]
        return cls(
            torch.cat([part.hidden for part in parts]),
            Span(*map(torch.cat, zip(*(part.span for part in parts), strict=True))),
            lengths,
            StateCache.side_by_side([part.cache for part in parts]),
            first.method,
            first.fingerprint,
            torch.cat(joined) if len(ids) == len(parts) else None,
        )

    def select(self, index: Tensor) -> DocumentMemory:
        """The documents `index` (n,), in that order; they may repeat."""
        here, there = index.cpu(), index.to(self.hidden.device)
        return DocumentMemory(
            self.hidden.index_select(0, there),
            Span(self.span.start[here], self.span.stop[here]),
            self.lengths[here],
            self.cache.select(there),
            self.method,
            self.fingerprint,
            None if self.input_ids is None else self.input_ids.index_select(0, there),
        )

    def to(self, device: torch.device | str) -> DocumentMemory:
        return DocumentMemory(
            self.hidden.to(device),
            self.span,
            self.lengths,
            self.cache.to(device),
            self.method,
            self.fingerprint,
            None if self.input_ids is None else self.input_ids.to(device),
        )

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file.

        Args:
            dtype: of the span's states. None keeps the model's own, which is exact;
                torch.bfloat16 halves a float32 memory.
        """
        tensors = {
            "hidden": self.hidden.detach().to(dtype or self.hidden.dtype).contiguous(),
            "span.start": self.span.start.contiguous(),
            "span.stop": self.span.stop.contiguous(),
            "lengths": self.lengths.contiguous(),
            **self.cache.tensors("cache."),
        }
        if self.input_ids is not None:
            tensors["input_ids"] = self.input_ids.contiguous()
        metadata = {
            "format": MEMORY_FORMAT,
            "fingerprint": self.fingerprint,
            "method": json.dumps(self.method.to_dict()),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, fingerprint: str = "") -> DocumentMemory:
        """The memory of a file.

        Args:
            fingerprint: of the model that is to use it; empty skips the comparison.

        Raises:
            InputError: no such file, no memory file, or one of another model.
        """
        tensors, metadata = read_tensors(path, MEMORY_FORMAT)
        check_fingerprint(path, metadata.get("fingerprint", ""), fingerprint)
        try:
            return cls(
                tensors["hidden"],
                Span(tensors["span.start"], tensors["span.stop"]),
                tensors["lengths"],
                StateCache.from_tensors(tensors, "cache."),
                _method(metadata),
                metadata.get("fingerprint", ""),
                tensors.get("input_ids"),
            )
        except KeyError as error:
            raise InputError(f"{path} lacks {error}; write it again with `remamba read`") from error


def _method(metadata: dict[str, str]) -> Method:
    """The method that a file's header tells; files of version 0.1 tell `remamba`'s settings."""
    if "method" in metadata:
        return method_of(json.loads(metadata["method"]))
    return former_method(json.loads(metadata["compression"]))
