"""A store of documents' memories: on the GPU, in RAM and in files; read once, whoever asks.

    store = MemoryStore(model, "memories/", ram_bytes=2**30)       # or a URL that fsspec knows
    key = store.key_of([ids], method)
    future = store.hold(key, start)     # a Future[Held]; `start` begins a reading if need be
    with future.result() as held:       # pinned until the block ends
        held.memory, held.source        # gpu | ram | file | shared | read

A memory is kept under what it was made of: the tokens, the method and the model. So a key never
stands for anything else, on whatever machine it was written.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from remamba.bare_model import BaseReMamba
from remamba.engine.store_files import StoreFiles
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.memory import DocumentMemory
from remamba.pretrained import known_fingerprint

Start = Callable[[], "Future[DocumentMemory]"]


class Held:
    """A memory that is pinned: it stays where it is until this is closed, or forgotten."""

    def __init__(self, store: MemoryStore, key: str, entry: _Entry, source: str):
        self.key = key
        self.memory = entry.memory
        self.source = source
        """Where it came from: gpu, ram or file, where it was kept before it was asked for; shared:
        another's reading that was under way; read: read for this asker."""
        self._store: MemoryStore | None = store
        self._entry = entry

    def close(self) -> None:
        """The memory may be evicted again."""
        store, self._store = self._store, None
        if store is not None:
            store._unpin(self._entry)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(eq=False)
class _Entry:
    memory: DocumentMemory
    is_on_gpu: bool
    bytes: int
    pins: int = 0


@dataclass(eq=False)
class _Flight:
    """A memory that is being read or loaded, and those who wait for it."""

    waiters: list[Future[Held]] = field(default_factory=list)
    reading: Future[DocumentMemory] | None = None


class MemoryStore:
    """Documents' memories within budgets; the one that was used longest ago goes first.

    A memory that has no room on the GPU goes to RAM, one that has none there is forgotten, or
    stands in its file. Pinned ones stay, so that the budgets can be exceeded for a while.

    Any thread may use it.

    Args:
        model: whose memories they are.
        place: a folder, or a URL of a place that fsspec knows (s3://bucket/memories). None: nothing
            outlives the process, nor its budget.
        ram_bytes: most bytes of memories in RAM.
        gpu_bytes: most bytes of memories on the model's GPU.
        file_bytes: most bytes of the files in a folder. None: no bound.

    Raises:
        InputError: the place cannot be used.
    """

    def __init__(
        self,
        model: BaseReMamba,
        place: str | Path | None = None,
        *,
        ram_bytes: int = 2**30,
        gpu_bytes: int = 0,
        file_bytes: int | None = None,
    ):
        given = (("ram_bytes", ram_bytes), ("gpu_bytes", gpu_bytes), ("file_bytes", file_bytes))
        for name, value in given:
            if value is not None and value < 0:
                raise InputError(f"{name} = {value} must be 0 or above")
        self._model = model
        self._budgets = {"ram": ram_bytes, "gpu": gpu_bytes}
        if place is None and file_bytes is not None:
            raise InputError(f"file_bytes = {file_bytes} needs a place; give a folder")
        self._files = None if place is None else StoreFiles(place, file_bytes)
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._writer = ThreadPoolExecutor(1, "remamba-memories")
        self.counts: Counter[str] = Counter()
        """How often: hit_gpu, hit_ram, hit_file, shared, read, evicted_gpu, evicted_ram, unserved
        (a file that is damaged or could not be fetched), unwritten (no file could be written)."""

    def key_of(self, rows: Sequence[Sequence[int]], method: Method, owner: str = "") -> str:
        """What a document's memory is kept under.

        Args:
            rows: its tokens, in one row; of the method `chunks` a row for each chunk.
            owner: whose it is; different owners share no memory, though their texts be the same.
        """
        told = {
            "model": known_fingerprint(self._model),
            "dtype": str(self._model.dtype),
            "method": method.to_dict(),
            "lengths": [len(row) for row in rows],
            **({"owner": owner} if owner else {}),
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for row in rows:
            digest.update(array("q", row).tobytes())
        return digest.hexdigest()

    def bytes(self, tier: str) -> int:
        """Bytes of memories in "ram" or on the "gpu"."""
        with self._lock:
            return sum(e.bytes for e in self._entries.values() if e.is_on_gpu == (tier == "gpu"))

    def __contains__(self, key: str) -> bool:
        """Whether it is kept on the GPU or in RAM."""
        with self._lock:
            return key in self._entries

    def holds(self, key: str) -> bool:
        """Whether nothing has to be read for a key: it is kept, or has a file."""
        return key in self or (self._files is not None and self._files.has(key))

    def forget(self, key: str) -> None:
        """Keep a memory no longer, nor its file; who has it pinned may use it to the end.

        Raises:
            OSError: the file cannot be removed.
        """
        with self._lock:
            self._entries.pop(key, None)
        if self._files is not None:
            # behind what is being written
            self._writer.submit(self._files.remove, key).result()

    def hold(self, key: str, start: Start) -> Future[Held]:
        """The memory of a key, pinned: kept, loaded from its file, or read once for all who ask.

        A file is loaded in the caller's thread. If all who wait for a reading cancel their
        futures, the reading is cancelled.

        Args:
            start: begins a reading; called where nothing is kept and nobody else has begun one.
        """
        future: Future[Held] = Future()
        with self._lock:
            if (held := self._kept(key)) is not None:
                future.set_running_or_notify_cancel()
                future.set_result(held)
                return future
            flight, is_first = self._flights.get(key), False
            if flight is None:
                flight, is_first = _Flight(), True
                self._flights[key] = flight
            flight.waiters.append(future)
        future.add_done_callback(lambda _: self._leave(key, flight))
        if is_first:
            self._take_off(key, flight, start)
        return future

    def close(self) -> None:
        """Wait until everything that is to be in a file is there."""
        self._writer.shutdown(wait=True)

    def flush(self) -> None:
        """Wait until what was read so far is in its files."""
        self._writer.submit(lambda: None).result()

    def _take_off(self, key: str, flight: _Flight, start: Start) -> None:
        """Load a memory from its file, or begin to read it."""
        try:
            memory = self._loaded(key)
            if memory is not None:
                self._land(key, flight, memory, "file")
                return
            reading = flight.reading = start()
        except BaseException as error:
            self._crash(key, flight, error)
            if not isinstance(error, Exception):
                raise
            return
        reading.add_done_callback(lambda done: self._arrived(key, flight, done))
        self._leave(key, flight)  # all may have left meanwhile

    def _arrived(self, key: str, flight: _Flight, done: Future[DocumentMemory]) -> None:
        if done.cancelled():
            self._crash(key, flight, InputError("the reading of the document was left off"))
        elif (error := done.exception()) is not None:
            self._crash(key, flight, error)
        else:
            self._land(key, flight, done.result(), "read")

    def _land(self, key: str, flight: _Flight, memory: DocumentMemory, source: str) -> None:
        """Keep a memory, and give it to those who wait for it."""
        memory.key = key
        is_read, told = source == "read", {"file": "hit_file"}
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            made = _Entry(memory, memory.hidden.is_cuda, num_bytes(memory))
            entry = self._entries.setdefault(key, made)
            entry.pins += 1  # until all have theirs
            for future in flight.waiters:
                if future.set_running_or_notify_cancel():
                    entry.pins += 1
                    self.counts[told.get(source, source)] += 1
                    future.set_result(Held(self, key, entry, source))
                    source = "shared" if is_read else source
            self._unpin(entry)
        if self._files is not None and is_read:
            with suppress(RuntimeError):  # the store was closed meanwhile
                self._writer.submit(self._write, key, memory)

    def _crash(self, key: str, flight: _Flight, error: BaseException) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        for future in flight.waiters:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _leave(self, key: str, flight: _Flight) -> None:
        """When nobody waits for a reading any more, it is cancelled."""
        with self._lock:
            if not all(future.cancelled() for future in flight.waiters):
                return
            if self._flights.get(key) is flight and flight.reading is not None:
                del self._flights[key]  # who asks now has a reading begun anew
            reading = flight.reading
        if reading is not None:
            reading.cancel()

    def _kept(self, key: str) -> Held | None:
        """What is on the GPU or in RAM, pinned."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        source = "gpu" if entry.is_on_gpu else "ram"
        self.counts[f"hit_{source}"] += 1
        entry.pins += 1
        device = self._model.device
        if not entry.is_on_gpu and device.type == "cuda" and entry.bytes <= self._budgets["gpu"]:
            entry.memory, entry.is_on_gpu = entry.memory.to(device), True
            entry.memory.key = key
            self._evict()
        return Held(self, key, entry, source)

    def _unpin(self, entry: _Entry) -> None:
        with self._lock:
            entry.pins -= 1
            self._evict()

    def _evict(self) -> None:
        """Bring what is kept within the budgets, as far as it is not pinned."""
        for tier in ("gpu", "ram"):
            excess = self.bytes(tier) - self._budgets[tier]
            for key in [*self._entries]:
                entry = self._entries.get(key)
                if excess <= 0:
                    break
                if entry is None or entry.pins or entry.is_on_gpu != (tier == "gpu"):
                    continue
                excess -= entry.bytes
                self.counts[f"evicted_{tier}"] += 1
                if tier == "gpu":
                    entry.memory, entry.is_on_gpu = entry.memory.to("cpu"), False
                else:
                    self._entries.pop(key, None)

    def _loaded(self, key: str) -> DocumentMemory | None:
        """The memory of a file; None where there is none, or none that can be trusted."""
        if self._files is None:
            return None
        try:
            return self._files.load(key, self._model)
        except Exception as error:  # of another kind with each file system
            self.counts["unserved"] += 1
            warnings.warn(f"{error}; the document is read anew", stacklevel=2)
            return None

    def _write(self, key: str, memory: DocumentMemory) -> None:
        assert self._files is not None
        try:
            with torch.inference_mode():
                self._files.save(key, memory)
        except Exception as error:  # the answers do not depend on it
            self.counts["unwritten"] += 1
            warnings.warn(f"a document's memory is not kept in a file: {error}", stacklevel=2)


def num_bytes(memory: DocumentMemory) -> int:
    """Bytes of a memory's tensors."""
    tensors = [memory.hidden, memory.lengths, *memory.span, *memory.cache.tensors().values()]
    if memory.input_ids is not None:
        tensors.append(memory.input_ids)
    return sum(tensor.nbytes for tensor in tensors)
