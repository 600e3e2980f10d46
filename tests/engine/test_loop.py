"""The loop: real threads and coroutines on one engine; refusals, ends and errors."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from remamba import Answer, Ask, CompressionConfig, InputError, Reader
from remamba.engine.engine import Request, SamplingOptions
from remamba.engine.entering import ReadJob
from remamba.engine.loop import Busy, Closed, EngineLoop, TimedOut
from remamba.engine.store import MemoryStore
from remamba.methods.base import Method
from remamba.methods.chunks import Chunks
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from tests.engine.test_failures import out_of_memory
from tests.tiny import TEXT, WHOLE, tiny_model, tiny_tokenizer

SHORT = SamplingOptions(max_new_tokens=6)
DRAWN = SamplingOptions(max_new_tokens=12, temperature=1.0, seed=5, logprobs=2)
ENDLESS = SamplingOptions(max_new_tokens=10**6, ignore_eos=True)
QUESTION = "Who lives in Lisbon?"
METHODS: dict[str, Method | str] = {
    "plain": "plain",
    "whole": ReMamba(WHOLE),
    "paper": ReMamba(CompressionConfig(length=0.5, keep_ratio=0.1)),
    "chunks": Chunks(32),
    "candidates": Chunks(32, candidates=2),
    "last": "last",
    "bm25": "bm25",
}


def make_reader(slots: int = 4) -> Reader:
    return Reader(tiny_model(compression=WHOLE.to_dict()), tiny_tokenizer(), slots=slots)


@contextmanager
def running(reader: Reader | None = None, **options: Any) -> Iterator[EngineLoop]:
    """A loop of small steps; at the end nothing of it is left."""
    loop = EngineLoop(reader or make_reader(), **{"step_tokens": 16, **options})
    try:
        yield loop
    finally:
        loop.close()
        assert not loop._thread.is_alive()
        assert loop.engine.is_idle and loop.figures()["under_way"] == 0


def told(answer: Answer) -> tuple[Any, ...]:
    kept = None if answer.kept is None else [(word.text, word.start) for word in answer.kept]
    return answer.text, answer.token_ids, answer.finish_reason, kept, answer.passages


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@pytest.mark.parametrize("name", METHODS)
def test_answers_equal_the_readers(name: str) -> None:
    """Of a text, of a kept document, from threads at once; each stream's pieces are its text."""
    method, texts = METHODS[name], [TEXT, TEXT * 3, "The baker is away. " * 9]
    asks = [Ask(text, QUESTION, method=method, options=DRAWN) for text in texts]
    expected = [told(answer) for answer in make_reader().answer(asks)]
    with running() as loop, ThreadPoolExecutor(6) as pool:

        def answer(number: int) -> tuple[Any, ...]:
            ask = asks[number]
            if number % 2:
                kept = loop.keep(texts[number], method).result()
                assert (kept.source is None) == (name in ("paper", "bm25"))
                ask = Ask(kept.document, QUESTION, method=method, options=DRAWN)
            stream = loop.ask(ask, client=f"client {number}")
            pieces = list(stream)
            (found,) = stream.answers
            assert "".join(piece.text for piece in pieces) == found.text
            assert [t for piece in pieces for t in piece.token_ids] == found.token_ids
            assert [one.token_id for piece in pieces for one in piece.logprobs] == found.token_ids
            ends = [piece.finish_reason for piece in pieces]
            assert ends == [None] * (len(ends) - 1) + [found.finish_reason]
            return told(found)

        found = list(pool.map(answer, [0, 1, 2, 1, 0, 2]))
    assert found == [expected[number] for number in [0, 1, 2, 1, 0, 2]]


def test_coroutines() -> None:
    """Streams in an event loop, several answers of one, and one that is left."""
    asks = [Ask(TEXT, f"{QUESTION} {i}", options=DRAWN) for i in range(5)]
    expected = [told(answer) for answer in make_reader().answer(asks)]

    async def answer(loop: EngineLoop, ask: Ask) -> tuple[Any, ...]:
        async with await asyncio.to_thread(loop.ask, ask) as stream:
            text = "".join([piece.text async for piece in stream])
            assert text == stream.answers[0].text
            return told(stream.answers[0])

    async def several(loop: EngineLoop) -> list[list[int]]:
        stream = await asyncio.to_thread(loop.ask, asks[0], 3)
        texts = {0: "", 1: "", 2: ""}
        async for piece in stream:
            texts[piece.number] += piece.text
        done = stream.completions
        assert list(texts.values()) == [one.text for one in done]
        return [one.token_ids for one in done]

    async def leave(loop: EngineLoop) -> None:
        stream = loop.submit(Request(prompt=[5, 6], options=ENDLESS))

        async def listen() -> None:
            async with stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await stream.result_async())[0].finish_reason == "cancelled"

    async def all_of_it(loop: EngineLoop) -> Any:
        kept = await asyncio.wrap_future(loop.keep(TEXT))
        assert kept.source == "read"
        return await asyncio.gather(
            *(answer(loop, ask) for ask in asks), several(loop), leave(loop)
        )

    with running() as loop:
        *found, forks, _ = asyncio.run(all_of_it(loop))
        assert found == expected
        assert forks[0] == expected[0][1] and len({tuple(one) for one in forks}) == 3
        assert loop.figures()["cancelled"] == 1


def test_a_crowd_and_leavers() -> None:
    """Each that stays is answered as if it were alone; all slots come back."""
    chance = random.Random(4)
    requests = [
        Request(
            prompt=[5 + i, 6], method="plain",
            options=SamplingOptions(4 + i % 9, temperature=1.0, seed=i, ignore_eos=True),
        )
        for i in range(60)
    ]  # fmt: skip
    alone = [one.token_ids for one in _one_by_one(requests)]
    with running(most_waiting=100) as loop, ThreadPoolExecutor(30) as pool:

        def answer(number: int) -> list[int] | None:
            stream = loop.submit(requests[number])
            if number % 3 == 0:
                leave_after = chance.randint(0, 2)
                for _ in range(leave_after):
                    next(stream, None)
                stream.cancel() if number % 2 else stream.__exit__()
                return None
            return stream.result()[0].token_ids

        found = list(pool.map(answer, range(60)))
        until(lambda: loop.figures()["under_way"] == 0)
        for number, tokens in enumerate(found):
            assert tokens is None or tokens == alone[number]
        counts = loop.figures()
        assert counts["finished"] + counts["cancelled"] == 60 and counts["finished"] >= 40
        assert counts["running"] == counts["waiting"] == 0


def _one_by_one(requests: list[Request]) -> list[Any]:
    engine = make_reader()._ready_engine()
    return [engine.run([request])[0] for request in requests]


def test_too_many_are_refused_at_once() -> None:
    with running(make_reader(slots=1), most_waiting=2) as loop:
        streams = [loop.submit(Request(prompt=[5], options=ENDLESS)) for _ in range(3)]
        for refused in (
            lambda: loop.submit(Request(prompt=[5])),
            lambda: loop.submit(Request(prompt=[5]), count=2),
            lambda: loop.ask(Ask(TEXT, QUESTION)),
            lambda: loop.read(ReadJob([[1, 2]], Plain())),
            lambda: loop.keep(TEXT).result(),
        ):
            with pytest.raises(Busy, match="3 are under way already, of 3; ask again later"):
                refused()
        with pytest.raises(InputError, match="4 answers are asked for; at most 3 can be under way"):
            loop.submit(Request(prompt=[5]), count=4)
        assert not loop.is_ready and loop.figures()["refused"] == 6
        for stream in streams:
            stream.cancel()
        until(lambda: loop.is_ready)
        assert loop.submit(Request(prompt=[5], options=SHORT)).result()[0].token_ids


def test_what_cannot_be_read_takes_no_place() -> None:
    with running(most_waiting=0) as loop:
        for _ in range(9):
            with pytest.raises(InputError, match="knows 0 to 339"):
                loop.submit(Request(prompt=[340]))
            with pytest.raises(InputError, match="the question is empty"):
                loop.ask(Ask(TEXT, ""))
            with pytest.raises(InputError, match="the document is empty"):
                loop.keep(" ")
        assert loop.figures()["under_way"] == 0


def test_a_time_that_runs_out() -> None:
    """What was written until then is heard; the one beside it goes on."""
    with running() as loop:
        other = loop.submit(Request(prompt=[7], options=SamplingOptions(300, ignore_eos=True)))
        stream, heard = loop.submit(Request(prompt=[5], options=ENDLESS), timeout=0.2), 0
        with pytest.raises(TimedOut):
            for piece in stream:
                heard += len(piece.token_ids)
        with pytest.raises(TimedOut):
            _ = stream.completions
        assert heard > 0 and loop.figures()["timed_out"] == 1
        assert len(other.result()[0].token_ids) == 300


def test_a_forgotten_stream_gives_its_slot_back() -> None:
    with running(make_reader(slots=1)) as loop:
        stream = loop.submit(Request(prompt=[5], options=ENDLESS))
        next(stream)
        del stream
        gc.collect()
        assert loop.submit(Request(prompt=[5], options=SHORT)).result()[0].finish_reason


def test_errors_are_raised_where_one_listens() -> None:
    with running() as loop:
        with out_of_memory(loop.reader.model):
            stream = loop.submit(Request(prompt=[5, 6, 7], options=SHORT, method="plain"), count=2)
            for listen in (lambda: next(stream), stream.result, lambda: stream.completions):
                with pytest.raises(torch.OutOfMemoryError):
                    listen()
            with pytest.raises(torch.OutOfMemoryError):
                loop.keep(TEXT).result()
        assert loop.figures()["failed"] == 2
        assert loop.keep(TEXT).result().source == "read"


@pytest.mark.parametrize("amid", ["decoding", "reading", "waiting"])
def test_closing_tells_everybody(amid: str) -> None:
    loop = EngineLoop(make_reader(slots=1), step_tokens=1)
    streams = [loop.submit(Request(prompt=[5], options=ENDLESS))]
    until(lambda: loop.figures()["running"] == 1)
    reading: Future[Any] | None = None
    if amid == "reading":
        reading = loop.keep(TEXT * 30)
        time.sleep(0.05)
    elif amid == "waiting":
        streams += [loop.submit(Request(prompt=[5], options=ENDLESS)) for _ in range(3)]
    loop.close()
    for stream in streams:
        with pytest.raises(Closed, match="shut down before"):
            stream.result()
    if reading is not None:
        with pytest.raises(Closed):
            reading.result()
    for refused in (lambda: loop.submit(Request(prompt=[5])), lambda: loop.ask(Ask(TEXT, "x"))):
        with pytest.raises(Closed, match="no more is taken"):
            refused()
    assert loop.engine.is_idle and not loop._thread.is_alive()
    assert loop.reader.answer([Ask(TEXT, QUESTION, options=SHORT)])[0].text is not None


def test_draining() -> None:
    """What is under way is answered, nothing more is taken."""
    with running() as loop:
        streams = [
            loop.submit(Request(prompt=[i + 1], options=SamplingOptions(50, ignore_eos=True)))
            for i in range(9)
        ]
        with pytest.raises(Closed):
            until(lambda: loop.drain(0) and bool(loop.submit(Request(prompt=[5]))))
        assert loop.drain(30)
        assert all(len(stream.result()[0].token_ids) == 50 for stream in streams)
    with running() as loop:
        stream = loop.submit(Request(prompt=[5], options=ENDLESS))
        assert not loop.drain(0.05)
        stream.cancel()
        assert loop.drain(10)


def test_a_fault_of_the_loop_itself_ends_in_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    loop = EngineLoop(make_reader(), step_tokens=4)
    stream = loop.submit(Request(prompt=[5], options=ENDLESS))
    next(stream)

    def broken() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(loop.engine, "step", broken)
    with pytest.raises(AssertionError, match="a bug"):
        stream.result()
    with pytest.raises(Closed):
        loop.submit(Request(prompt=[5]))
    loop.close()
    assert len(seen) == 1


def test_a_document_is_read_once_for_many_and_leaving_ends_the_reading(tmp_path: Path) -> None:
    reader = make_reader()
    store = MemoryStore(reader.model, tmp_path)
    text = TEXT * 10
    with running(reader, store=store) as loop, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(loop.keep, text) for _ in range(12)]
        sources = sorted(str(one.result().result().source) for one in asked)
        assert set(sources) <= {"ram", "read", "shared"} and sources.count("read") == 1
        assert loop.figures()["read_documents"] == 1
        encoded = reader.encoded(text)  # a document that is encoded already is the same one
        assert loop.keep(encoded).result().source == "ram"
        assert encoded.memory is not None and loop.share_read(encoded) is None
        assert loop.keep(text, owner="another").result().source == "read"
        long = reader.encoded(TEXT * 200)
        left = loop.keep(long)
        until(lambda: 0 < (loop.share_read(long) or 0) < 1)
        assert loop.share_read(long, "another") is None
        assert left.cancel()
        until(lambda: loop.figures()["under_way"] == 0)
        assert loop.engine.is_idle and loop.figures()["read_documents"] == 2
        assert loop.share_read(long) is None
    store.close()
    with running(make_reader(), store=MemoryStore(reader.model, tmp_path)) as loop:
        assert loop.keep(text).result().source == "file"
        assert loop.figures()["read_documents"] == 0


def test_a_reader_that_a_loop_runs() -> None:
    """It reads through the loop, and leaves answers to it; one loop at a time."""
    reader = make_reader()
    with running(reader) as loop:
        document = reader.read(TEXT)
        assert loop.figures()["read_documents"] == 1
        with pytest.raises(InputError, match=r"loop\.ask"):
            document.ask(QUESTION)
        with pytest.raises(InputError, match="another EngineLoop"):
            EngineLoop(reader)
        stream = loop.ask(Ask(document, QUESTION, options=SHORT))
        stream.result()
        answer = told(stream.answers[0])
    assert told(document.ask(QUESTION, options=SHORT)) == answer


def test_a_loop_that_nobody_closes_ends_with_the_program() -> None:
    program = (
        "from tests.engine.test_loop import *\n"
        "loop = EngineLoop(make_reader(), step_tokens=4)\n"
        "stream = loop.submit(Request(prompt=[5], options=ENDLESS))\n"
        "next(stream)\nprint('begun', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr


def test_loops_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="most_waiting = -1"):
        EngineLoop(make_reader(), most_waiting=-1)
