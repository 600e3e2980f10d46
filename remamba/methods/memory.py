"""The memory of a document: what its first reading leaves for later questions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.fields import shown
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
    key: str = ""
    """What a store of memories keeps it under; empty for one that no store has."""

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

    def check_method(self, asked: Method) -> None:
        """Raise InputError where a layer rule is asked of states without it, or the reverse."""
        if (asked.has_rule or self.method.has_rule) and asked != self.method:
            raise InputError(
                f"the memory was read by {_told(self.method)}, and its states cannot serve "
                f"{_told(asked)}: the layers read by another rule; read the document again"
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
            self.key,
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
        if self.key:
            metadata["key"] = self.key
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, fingerprint: str = "") -> DocumentMemory:
        """The memory of a file.

        Args:
            fingerprint: of the model that is to use it; empty skips the comparison.

        Raises:
            InputError: no such file, no memory file, or one of another model.
        """
        told: list[Method] = []

        def check(header: dict[str, str]) -> None:
            stored = header.get("fingerprint", "")
            check_fingerprint(path, stored, fingerprint)
            if fingerprint and not stored:
                raise InputError(
                    f"{path} does not tell whose states it holds (its fingerprint is empty); write "
                    "it again with `remamba read`"
                )
            told.append(_method(path, header))

        tensors, metadata = read_tensors(path, MEMORY_FORMAT, check)
        try:
            memory = cls(
                tensors["hidden"],
                Span(tensors["span.start"], tensors["span.stop"]),
                tensors["lengths"],
                StateCache.from_tensors(tensors, "cache."),
                told[0],
                metadata.get("fingerprint", ""),
                tensors.get("input_ids"),
                metadata.get("key", ""),
            )
        except KeyError as error:
            raise InputError(f"{path} lacks {error}; write it again with `remamba read`") from error
        if fault := memory._fault():
            raise InputError(f"{path}: {fault}; write it again with `remamba read`")
        return memory

    def _fault(self) -> str | None:
        """What of the tensors does not fit the others, in words."""
        rows = self.lengths.shape[0] if self.lengths.dim() == 1 else 0
        numbers = {"lengths": self.lengths, "span.start": self.span.start}
        numbers["span.stop"] = self.span.stop
        for name, tensor in numbers.items():
            if tensor.dtype != torch.int64 or tensor.shape != (rows,) or not rows:
                return f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not one int64 a document"
        start, stop = self.span
        if bool(((start < 0) | (stop < start) | (self.lengths < stop) | (self.lengths < 1)).any()):
            return f"the span {start.tolist()} to {stop.tolist()} lies outside the document"
        hidden, width = self.hidden, int(self.span.length.max())
        if hidden.dim() != 3 or hidden.shape[0] != rows or hidden.shape[1] < width:
            return f"hidden is {tuple(hidden.shape)}, too little for {rows} spans of {width}"
        ids = self.input_ids
        if ids is not None and (
            ids.dtype != torch.int64
            or ids.dim() != 2
            or ids.shape[0] != rows
            or ids.shape[1] < int(self.lengths.max())
        ):
            return f"input_ids is {ids.dtype} {tuple(ids.shape)}, too few for the documents"
        rule = self.cache.rule
        if (rule is None and self.method.name == "scale") or (rule and not self.method.has_rule):
            return f"its states have {'no' if rule is None else 'a'} layer rule"
        if rule is not None and not all(0 < factor < math.inf for factor in rule.factors):
            return f"its rule has the factors {list(rule.factors)[:4]}"
        ruled = set() if rule is None else set(rule.tensors(""))
        for name, state in self.cache.tensors().items():
            if name in ruled:
                continue
            if state.dim() < 2 or state.shape[0] != rows or not state.is_floating_point():
                return f"{name} is {state.dtype} {tuple(state.shape)}, not {rows} rows of states"
        return None


def _told(method: Method) -> str:
    """A method with those of its options that are set."""
    options = {name: value for name, value in method.to_dict().items() if value not in (None, "")}
    name = options.pop("name")
    return f"the method {name}" + (f" {options}" if options else "")


def _method(path: str | Path, header: dict[str, str]) -> Method:
    """The method that a file's header tells; files of version 0.1 tell `remamba`'s settings."""
    name = "method" if "method" in header else "compression"
    if name not in header:
        raise InputError(f"{path} lacks {name!r}; write it again with `remamba read`")
    try:
        told = json.loads(header[name])
        if name == "compression" and told is None:
            return former_method(None)
        if not isinstance(told, dict):
            raise InputError(f"{name} = {shown(header[name])} holds no settings by name")
        return method_of(told) if name == "method" else former_method(told)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} tells a way of reading that there is not ({reason}); write it again with "
            "`remamba read`"
        ) from error
