"""Prompts and documents that are read piece by piece, between the steps of those being answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from remamba import CompressionConfig, InputError
from remamba.engine import entrance
from remamba.engine.engine import Completion, Engine, Request, SamplingOptions
from remamba.engine.entering import ReadJob
from remamba.engine.request import Job
from remamba.methods.base import Method
from remamba.methods.chunks import Chunks
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.shorten import Drop, Last, Middle
from remamba.methods.twice import Twice
from tests.tiny import tiny_model

METHODS: dict[str, Method] = {
    "plain": Plain(),
    "paper": ReMamba(CompressionConfig(start=0.1, length=0.5, keep_ratio=0.3)),
    "exact": ReMamba(CompressionConfig(length=0.5, keep_ratio=0.3, adaption="exact")),
    "append": ReMamba(CompressionConfig(length=0.5, keep_ratio=0.3, placement="append")),
    "whole": ReMamba(CompressionConfig(length=1.0, keep_ratio=0.3, adaption="multiplicative")),
    "before": ReMamba(CompressionConfig(length=1.0, keep_ratio=0.3, placement="before_question")),
    "random": ReMamba(CompressionConfig(length=0.8, selector="random")),
    "chunks": Chunks(32),
    "chance": Chunks(32, choice="random"),
    "last": Last(30),
    "middle": Middle(31, reader=ReMamba(CompressionConfig(length=1.0, keep_ratio=0.3))),
    "drop": Drop(0.1, 0.5),
    "twice": Twice(),
}
GREEDY = SamplingOptions(max_new_tokens=7)
ENDLESS = SamplingOptions(max_new_tokens=200, ignore_eos=True)


def ids_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(1, 340, (length,), generator=generator).tolist()


def told(found: Completion) -> tuple[Any, ...]:
    """What two ways to one answer must agree in to the last digit."""
    kept = None if found.kept is None else [place for place, _ in found.kept]
    return found.token_ids, kept, found.chunk, found.finish_reason, found.prompt_tokens


def finished(engine: Engine, *jobs: Job | ReadJob) -> None:
    while not all(job.is_finished for job in jobs):
        engine.step()


@pytest.mark.parametrize("step_tokens", [1, 13, 64])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_pieces_equal_the_whole(backbone: str, name: str, step_tokens: int) -> None:
    """Of documents with their questions, of unequal lengths, beside one another."""
    model = tiny_model(backbone)
    requests = [
        Request(document=ids_of(n, n), question=ids_of(q), options=GREEDY, method=METHODS[name])
        for n, q in ((90, 5), (41, 9), (50, 4), (90, 7))
    ]
    whole = [Engine(model).run([request])[0] for request in requests]
    pieces = Engine(model, slots=3, step_tokens=step_tokens).run(requests)
    assert [told(found) for found in pieces] == [told(found) for found in whole]
    if whole[0].scored is not None:
        for one, other in zip(pieces, whole, strict=True):
            assert one.scored is not None and other.scored is not None
            torch.testing.assert_close(one.scored.scores, other.scored.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "whole", "before", "chunks", "last", "middle"])
def test_memories_read_in_pieces(name: str, assert_close: Callable[..., None]) -> None:
    """They are those that are read whole, and answer as these do."""
    model, method, document = tiny_model("mamba"), METHODS[name], ids_of(100)
    engine = Engine(model, step_tokens=9)
    job = engine.read(ReadJob([document], method))
    places = []
    while not job.is_finished:
        engine.step()
        places.append(job.tokens_read)
    assert job.memory is not None and engine.is_idle
    assert places == sorted(places) and places[0] < 40
    expected = model.read(torch.tensor([document]), method=method)
    assert job.memory.fingerprint == expected.fingerprint
    assert_close(job.memory.hidden, expected.hidden)
    for found, other in zip(job.memory.cache.ssm_states, expected.cache.ssm_states, strict=True):
        assert_close(found, other)
    asked = [
        Request(memory=memory, question=ids_of(6), options=GREEDY)
        for memory in (job.memory, expected)
    ]
    first, second = engine.run(asked)
    assert told(first) == told(second)


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
def test_a_long_document_stops_no_stream(static: bool) -> None:
    """A token in every step while two documents enter; the same tokens as without them."""
    model = tiny_model()
    engine = Engine(model, slots=3, static=static, step_tokens=16)
    stream = engine.submit(Request(prompt=ids_of(5), options=ENDLESS, method="plain"))
    engine.step()
    long = [
        engine.submit(
            Request(document=ids_of(300, i), question=ids_of(4), options=GREEDY, method="plain")
        )
        for i in range(2)
    ]
    steps = 0
    while not long[1].token_ids:
        before = len(stream.token_ids)
        engine.step()
        steps += 1
        assert len(stream.token_ids) == before + 1
        assert long[0].tokens_read <= 16 * steps
    assert steps >= 600 / 16
    finished(engine, *long)
    engine.cancel(stream)
    alone = Engine(model).run([Request(prompt=ids_of(5), options=ENDLESS, method="plain")])[0]
    assert stream.token_ids == alone.token_ids[: len(stream.token_ids)]


def test_short_prompts_pass_long_ones_by() -> None:
    """And the long one still gets every second step, however many short ones come."""
    engine = Engine(tiny_model(), slots=4, step_tokens=10)
    one = SamplingOptions(max_new_tokens=1)
    long = engine.submit(Request(prompt=ids_of(200), options=one, method="plain"))
    engine.step()
    steps = 1
    while not long.is_finished:
        short = engine.submit(Request(prompt=ids_of(8), options=one, method="plain"))
        for _ in range(2):
            engine.step()
            steps += 1
        assert short.is_finished
    assert 20 <= steps <= 44


@pytest.mark.parametrize("step_tokens", [None, 10])
def test_clients_take_turns(step_tokens: int | None) -> None:
    """One who asks much is answered between two answers of those who ask little."""
    engine = Engine(tiny_model(), slots=1, step_tokens=step_tokens)
    ended: list[str] = []
    asked = ["much"] * 6 + ["little"] + ["much"] * 6 + ["other", "little"]
    jobs = [
        engine.submit(Request(prompt=ids_of(8, i), options=GREEDY, method="plain", client=name))
        for i, name in enumerate(asked)
    ]
    while not engine.is_idle:
        ended += [job.client for job in engine.step() if job.is_finished]
    assert all(job.error is None for job in jobs)
    assert ended[:5] == ["much", "little", "other", "much", "little"]
    assert ended[5:] == ["much"] * 10


def test_turns_of_many_clients_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "MOST_CLIENTS", 3)
    engine = Engine(tiny_model(), slots=1)
    for number in range(9):
        engine.run([Request(prompt=[5], options=GREEDY, method="plain", client=f"{number}")] * 2)
    assert len(engine._entrance._turns) <= 5


def test_a_document_asked_about_while_it_is_read_is_read_once() -> None:
    engine = Engine(tiny_model(), slots=4, step_tokens=10)
    document = ids_of(100)
    requests = [
        Request(document=document, question=ids_of(n), options=GREEDY, method="plain")
        for n in (3, 4, 5)
    ]
    jobs = [engine.submit(request) for request in requests[:2]]
    for _ in range(3):
        engine.step()
    jobs.append(engine.submit(requests[2]))
    finished(engine, *jobs)
    assert jobs[0].memory is not None
    assert jobs[0].memory is jobs[1].memory is jobs[2].memory
    for job, request in zip(jobs, requests, strict=True):
        assert told(job.completion) == told(Engine(engine.model).run([request])[0])


def test_clients_share_no_reading() -> None:
    """Together from the start, or one coming while the other's document is read."""
    engine = Engine(tiny_model(), slots=4, step_tokens=10)
    document = ids_of(100)
    requests = [
        Request(
            document=document, question=ids_of(n), options=GREEDY, method="plain", client=client
        )
        for n, client in ((3, "one"), (4, "one"), (5, "other"), (6, "third"))
    ]
    jobs = [engine.submit(request) for request in requests[:3]]
    for _ in range(3):
        engine.step()
    jobs.append(engine.submit(requests[3]))
    finished(engine, *jobs)
    assert jobs[0].memory is not None and jobs[0].memory is jobs[1].memory
    assert jobs[2].memory is None and jobs[3].memory is None
    for job, request in zip(jobs, requests, strict=True):
        assert told(job.completion) == told(Engine(engine.model).run([request])[0])


def test_random_numbers_of_a_method_are_its_own() -> None:
    """Whatever is drawn by others between two pieces; and torch's own go on undisturbed."""
    model, method = tiny_model(), METHODS["random"]
    request = Request(document=ids_of(60), question=[4], options=GREEDY, method=method)
    expected = Engine(model).run([request])[0]
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    engine = Engine(model, step_tokens=8)
    torch.manual_seed(7)
    job, drawn = engine.submit(request), []
    while not job.is_finished:
        engine.step()
        if len(drawn) < 3:
            drawn.append(torch.rand(1))
    assert told(job.completion) == told(expected)
    assert torch.equal(torch.cat(drawn), undisturbed)


def test_leaving_off_amid_a_prefill() -> None:
    """The slot and the memory are free at once, and nothing goes on."""
    engine = Engine(tiny_model(), slots=1, step_tokens=8)
    long = engine.submit(Request(prompt=ids_of(100), options=GREEDY, method="plain"))
    reading = engine.read(ReadJob([ids_of(80)], Plain()))
    for _ in range(3):
        engine.step()
    assert 0 < long.tokens_read < 100 and not engine.is_idle
    engine.cancel(long, reading)
    assert engine.is_idle and engine.step() == []
    assert long.finish_reason == "cancelled" and reading.is_cancelled and reading.memory is None
    (done,) = engine.run([Request(prompt=ids_of(9), options=GREEDY, method="plain")])
    assert len(done.token_ids) == 7


def test_step_tokens_out_of_range() -> None:
    with pytest.raises(InputError, match="step_tokens = 0"):
        Engine(tiny_model(), step_tokens=0)
