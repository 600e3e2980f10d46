"""The store of memories: read once, kept within budgets, and never served damaged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from remamba import DocumentMemory, InputError
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.engine.store import Held, MemoryStore, num_bytes
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from tests.engine.test_steps import METHODS, ids_of, told
from tests.tiny import tiny_model

GREEDY = SamplingOptions(max_new_tokens=7)


class Desk:
    """Reads documents for a store, and counts how often."""

    def __init__(self, place: Any = None, backbone: str = "mamba", **budgets: int):
        self.model = tiny_model(backbone)
        self.store = MemoryStore(self.model, place, **budgets)
        self.read = 0

    def memory(self, document: list[int], method: Method) -> DocumentMemory:
        with torch.inference_mode():
            return self.model.read(torch.tensor([document]), method=method)

    def hold(self, document: list[int], method: Method = METHODS["whole"]) -> Held:
        def start() -> Future[DocumentMemory]:
            self.read += 1
            done: Future[DocumentMemory] = Future()
            done.set_result(self.memory(document, method))
            return done

        return self.store.hold(self.store.key_of([document], method), start).result()

    def file(self, document: list[int], method: Method = METHODS["whole"]) -> Path:
        assert self.store._files is not None
        return Path(self.store._files.path(self.store.key_of([document], method)))


def answer(model: Any, memory: DocumentMemory) -> tuple[Any, ...]:
    request = Request(memory=memory, question=ids_of(6), options=GREEDY)
    (found,) = Engine(model).run([request])
    return (*told(found), found.kept)


@pytest.mark.parametrize("place", [None, "folder", "memory://memories", "file://"])
@pytest.mark.parametrize("name", ["plain", "whole", "before", "chunks", "last"])
def test_a_hit_equals_no_hit(name: str, place: str | None, tmp_path: Path) -> None:
    """From RAM, from a file, and after a restart: the same states, the same answer."""
    method, document = METHODS[name], ids_of(80)
    where = {"folder": tmp_path, "file://": f"file://{tmp_path}", "memory://memories":
             f"memory://{tmp_path}", None: None}[place]  # fmt: skip
    desk = Desk(where)
    expected = answer(desk.model, desk.memory(document, method))
    sources = []
    for _ in range(2):
        with desk.hold(document, method) as held:
            sources.append(held.source)
            assert answer(desk.model, held.memory) == expected
    assert sources == ["read", "ram"] and desk.read == 1
    desk.store.close()
    again = Desk(where)
    with again.hold(document, method) as held:
        assert held.source == ("read" if place is None else "file")
        assert answer(again.model, held.memory) == expected
        fresh = desk.memory(document, method)
        assert torch.equal(held.memory.hidden, fresh.hidden)
        for one, other in zip(held.memory.cache.ssm_states, fresh.cache.ssm_states, strict=True):
            assert torch.equal(one, other)  # type: ignore[arg-type]
    assert again.read == (place is None)


def test_keys_tell_everything_apart() -> None:
    desk, other = Desk(), Desk(backbone="mamba2")
    half = MemoryStore(tiny_model("mamba").bfloat16())
    keys = [
        desk.store.key_of([[1, 2, 3]], Plain()),
        desk.store.key_of([[1, 2, 4]], Plain()),
        desk.store.key_of([[1, 2], [3]], Plain()),
        desk.store.key_of([[1], [2, 3]], Plain()),
        desk.store.key_of([[1, 2, 3]], METHODS["whole"]),
        desk.store.key_of([[1, 2, 3]], METHODS["before"]),
        other.store.key_of([[1, 2, 3]], Plain()),
        half.key_of([[1, 2, 3]], Plain()),
        desk.store.key_of([[1, 2, 3]], Plain(), "one"),
        desk.store.key_of([[1, 2, 3]], Plain(), "other"),
    ]
    assert len(set(keys)) == len(keys)
    assert Desk().store.key_of([[1, 2, 3]], Plain()) == keys[0]


def test_the_one_used_longest_ago_goes_first(tmp_path: Path) -> None:
    documents = [ids_of(50, seed) for seed in range(4)]
    size = num_bytes(Desk().memory(documents[0], METHODS["whole"]))
    desk = Desk(ram_bytes=3 * size)
    for document in documents[:3]:
        desk.hold(document).close()
    desk.hold(documents[0]).close()
    desk.hold(documents[3]).close()
    kept = [desk.store.key_of([d], METHODS["whole"]) in desk.store for d in documents]
    assert kept == [True, False, True, True]
    assert desk.store.bytes("ram") == 3 * size and desk.store.counts["evicted_ram"] == 1
    filed = Desk(tmp_path, ram_bytes=size)
    for document in documents:
        filed.hold(document).close()
    filed.store.flush()
    with filed.hold(documents[0]) as held:
        assert held.source == "file"
    assert filed.read == 4 and filed.store.bytes("ram") == size


@pytest.mark.parametrize("place", [None, "folder", "memory://forgotten"])
def test_what_is_forgotten_is_read_anew(place: str | None, tmp_path: Path) -> None:
    desk = Desk(tmp_path if place == "folder" else place)
    document, other = ids_of(30), ids_of(31)
    keys = [desk.store.key_of([ids], METHODS["whole"]) for ids in (document, other)]
    held = desk.hold(document)
    desk.hold(other).close()
    assert all(map(desk.store.holds, keys))
    wanted = answer(desk.model, held.memory)
    desk.store.forget(keys[0])
    assert [desk.store.holds(key) for key in keys] == [False, True]
    assert answer(desk.model, held.memory) == wanted
    held.close()
    again = desk.hold(document)
    assert (again.source, desk.read) == ("read", 3)
    desk.store.forget("of nothing")
    desk.store.close()


def test_pinned_ones_stay() -> None:
    document, other = ids_of(50), ids_of(60)
    desk = Desk(ram_bytes=1)
    key = desk.store.key_of([document], METHODS["whole"])
    held, same = desk.hold(document), desk.hold(document)
    assert (held.source, same.source) == ("read", "ram") and held.memory is same.memory
    desk.hold(other).close()
    held.close()
    held.close()
    assert key in desk.store
    del same
    assert key not in desk.store and desk.store.bytes("ram") == 0
    assert desk.hold(document).source == "read"


def test_many_askers_cost_one_reading() -> None:
    """Threads that ask at once; a thread reads, slowly."""
    desk, document, reading = Desk(), ids_of(70), []
    pool = ThreadPoolExecutor(20)
    key, begin = desk.store.key_of([document], METHODS["whole"]), threading.Barrier(16)

    def slow() -> DocumentMemory:
        time.sleep(0.2)
        return desk.memory(document, METHODS["whole"])

    def start() -> Future[DocumentMemory]:
        reading.append(pool.submit(slow))
        return reading[-1]

    def ask() -> Held:
        begin.wait()
        return desk.store.hold(key, start).result()

    found = [pool.submit(ask) for _ in range(16)]
    held = [one.result() for one in found]
    assert len(reading) == 1 and len({id(one.memory) for one in held}) == 1
    assert sorted(one.source for one in held) == ["read"] + ["shared"] * 15
    assert desk.store.counts == {"read": 1, "shared": 15}


def test_a_reading_that_fails_is_told_to_all_and_not_kept() -> None:
    desk, document = Desk(), ids_of(70)
    key, reading = desk.store.key_of([document], METHODS["whole"]), Future[DocumentMemory]()
    asked = [desk.store.hold(key, lambda: reading) for _ in range(3)]
    reading.set_exception(torch.OutOfMemoryError("out of memory"))
    for future in asked:
        with pytest.raises(torch.OutOfMemoryError):
            future.result()

    def refuse() -> Future[DocumentMemory]:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        desk.store.hold(key, refuse).result()
    assert desk.hold(document).source == "read" and desk.store.counts == {"read": 1}


def test_leaving_off() -> None:
    """One that leaves changes nothing; when all have left, nothing is read any more."""
    desk, document = Desk(), ids_of(70)
    key = desk.store.key_of([document], METHODS["whole"])
    first, second = Future[DocumentMemory](), Future[DocumentMemory]()
    asked = [desk.store.hold(key, lambda: first) for _ in range(2)]
    asked[0].cancel()
    assert not first.cancelled()
    asked[1].cancel()
    assert first.cancelled()
    late = desk.store.hold(key, lambda: second)
    second.set_result(desk.memory(document, METHODS["whole"]))
    with late.result() as held:
        assert held.source == "read"
    assert desk.store.counts == {"read": 1}


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "another key's", "another model's"])
def test_a_damaged_file_is_never_served(harm: str, tmp_path: Path) -> None:
    """It is read anew with one warning, and written anew."""
    document, desk = ids_of(80), Desk(tmp_path)
    desk.hold(document).close()
    desk.store.close()
    file = desk.file(document)
    data = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "changed":
        data[-5] ^= 1
        file.write_bytes(data)
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "another key's":
        desk = Desk(tmp_path)
        desk.hold(ids_of(81)).close()
        desk.store.close()
        os.replace(desk.file(ids_of(81)), file)
    else:
        other = Desk(tmp_path / "other", backbone="mamba2")
        other.hold(document).close()
        other.store.close()
        os.replace(other.file(document), file)
    again = Desk(tmp_path)
    with pytest.warns(UserWarning, match="the document is read anew") as told_of:
        held = again.hold(document)
    assert len(told_of) == 1 and held.source == "read" and again.read == 1
    assert torch.equal(held.memory.hidden, desk.memory(document, METHODS["whole"]).hidden)
    assert again.store.counts == {"unserved": 1, "read": 1}
    again.store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Desk(tmp_path).hold(document).source == "file"


def test_old_files_are_removed(tmp_path: Path) -> None:
    """Those used longest ago, a use being a load too."""
    documents = [ids_of(60, seed) for seed in range(4)]
    first = Desk(tmp_path / "sizes")
    first.hold(documents[0]).close()
    first.store.close()
    size = first.file(documents[0]).stat().st_size
    for number, document in enumerate(documents):
        desk = Desk(tmp_path / "files", file_bytes=3 * size + 100)
        desk.hold(document).close()
        desk.store.close()
        if number == 2:
            for place, old in enumerate(documents[:3]):
                os.utime(desk.file(old), (1000 + place, 1000 + place))
            again = Desk(tmp_path / "files")
            assert again.hold(documents[0]).source == "file"
    assert [desk.file(document).exists() for document in documents] == [True, False, True, True]


def test_a_full_disk(small_disk: Path) -> None:
    """The memory is there, its file is not, and nothing is left of it."""
    desk, document = Desk(small_disk), ids_of(5000)
    with pytest.warns(UserWarning, match="the disk is full"):
        held = desk.hold(document)
        desk.store.close()
    assert held.source == "read" and desk.store.counts["unwritten"] == 1
    assert list(small_disk.iterdir()) == []


WRITER = """
import sys, torch
from concurrent.futures import Future
from tests.engine.test_store import Desk
from tests.engine.test_steps import ids_of
desk = Desk(sys.argv[1], ram_bytes=0)
for seed in range(int(sys.argv[2]), 10**6):
    desk.hold(ids_of(3000, seed)).close()
    print(seed, flush=True)
"""


def test_kills_amid_writing_leave_nothing_broken(tmp_path: Path) -> None:
    """What is there afterwards is whole; parts of files are swept away once they are old."""
    chance, seed = random.Random(3), 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(chance.randint(2, 6)):
            seed = int(process.stdout.readline()) + 1
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / ".left.0.part").write_bytes(b"a part")
    old = time.time() - 7200
    for part in tmp_path.glob(".*.part"):
        os.utime(part, (old, old))
    desk, served = Desk(tmp_path), 0
    assert not list(tmp_path.glob(".*.part"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(seed):
            document = ids_of(3000, number)
            if desk.file(document).exists():
                with desk.hold(document) as held:
                    assert held.source == "file"
                    expected = desk.memory(document, METHODS["whole"])
                    assert torch.equal(held.memory.hidden, expected.hidden)
                served += 1
    assert served >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ram_bytes": -1}, "ram_bytes = -1"),
        ({"gpu_bytes": -1}, "gpu_bytes = -1"),
        ({"file_bytes": -1}, "file_bytes = -1"),
        ({"file_bytes": 1}, "file_bytes = 1 needs a place"),
        ({"file_bytes": 1, "place": "memory://x"}, "file_bytes = 1 is for a folder"),
        ({"place": "nowhere://x"}, "nowhere://x"),
        ({"place": __file__}, "is a file|has the name that a folder needs"),
    ],
)
def test_stores_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MemoryStore(tiny_model(), **options)


@pytest.mark.gpu
def test_what_has_no_room_on_the_gpu_goes_to_ram() -> None:
    desk = Desk()
    size = num_bytes(desk.memory(ids_of(50), METHODS["whole"]))
    desk = Desk(ram_bytes=size, gpu_bytes=size)
    desk.model.to("cuda")
    documents = [ids_of(50, seed) for seed in range(3)]
    for document in documents:
        desk.hold(document).close()
    assert desk.store.bytes("gpu") == desk.store.bytes("ram") == size
    with desk.hold(documents[1]) as held:
        assert held.source == "ram" and held.memory.hidden.is_cuda
    assert desk.hold(documents[0]).source == "read"


def test_those_who_leave_at_the_landing_spoil_nothing() -> None:
    """A memory that has no room is let go when the first of its askers drops it at once."""
    desk, document = Desk(ram_bytes=0), ids_of(70)
    key, reading = desk.store.key_of([document], METHODS["whole"]), Future[DocumentMemory]()
    asked = [desk.store.hold(key, lambda: reading) for _ in range(3)]
    asked[0].add_done_callback(lambda done: done.result().close())
    asked[1].cancel()
    reading.set_result(desk.memory(document, METHODS["whole"]))
    with asked[2].result(timeout=5) as held:
        assert held.source == "shared" and key in desk.store
    assert key not in desk.store and desk.store.bytes("ram") == 0


def test_two_readings_of_one_document_are_kept_once() -> None:
    """The first was left by all and could not be stopped any more; a second one was begun."""
    desk, document = Desk(), ids_of(70)
    key = desk.store.key_of([document], METHODS["whole"])
    first, second = Future[DocumentMemory](), Future[DocumentMemory]()
    first.set_running_or_notify_cancel()
    desk.store.hold(key, lambda: first).cancel()
    asked = desk.store.hold(key, lambda: second)
    first.set_result(desk.memory(document, METHODS["whole"]))
    second.set_result(desk.memory(document, METHODS["whole"]))
    asked.result(timeout=5).close()
    entry = desk.store._entries[key]
    assert entry.pins == 0 and desk.store.bytes("ram") == entry.bytes
