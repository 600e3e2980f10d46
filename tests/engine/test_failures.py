"""Errors amid the engine's work: each ends the jobs that it concerns, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from remamba import InputError
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.engine.entering import ReadJob
from remamba.methods.plain import Plain
from remamba.text import GrowingText
from tests.engine.test_steps import METHODS, finished, ids_of, told
from tests.tiny import tiny_model, tiny_tokenizer

GREEDY = SamplingOptions(max_new_tokens=7)
LONG = SamplingOptions(max_new_tokens=40, ignore_eos=True)


@contextmanager
def out_of_memory(model: Any, rows: int = 1, width: int = 2) -> Iterator[list[int]]:
    """While it holds, a pass of so many rows and so wide runs out of memory; how often it did."""
    times = [0]

    def refuse(_: Any, given: Any) -> None:
        if given[0].shape[0] >= rows and given[0].shape[1] >= width:
            times[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.backbone.register_forward_pre_hook(refuse)
    try:
        yield times
    finally:
        hook.remove()


def prompt(length: int, seed: int = 0, options: SamplingOptions = GREEDY) -> Request:
    return Request(prompt=ids_of(length, seed), options=options, method="plain")


@pytest.mark.parametrize("step_tokens", [None, 8], ids=["whole", "pieces"])
def test_a_prefill_that_fails(step_tokens: int | None) -> None:
    """Its job tells why; the one being answered goes on, and so does the one that waits."""
    engine = Engine(tiny_model(), slots=2, step_tokens=step_tokens)
    running = engine.submit(prompt(4, options=LONG))
    engine.step()
    with out_of_memory(engine.model, width=8) as times:
        failing = engine.submit(prompt(30))
        while not failing.is_finished:
            engine.step()
        assert times == [1]
    assert isinstance(failing.error, torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        _ = failing.completion
    later = engine.submit(prompt(12))
    finished(engine, running, later)
    for job, request in ((running, prompt(4, options=LONG)), (later, prompt(12))):
        assert told(job.completion) == told(Engine(engine.model).run([request])[0])
    assert engine.is_idle


def test_a_group_without_memory_is_prefilled_one_by_one() -> None:
    """What is too much for four at once is enough for each alone."""
    model = tiny_model()
    requests = [prompt(12, seed) for seed in range(4)]
    expected = [told(found) for found in Engine(model).run(requests)]
    engine = Engine(model, slots=4)
    jobs = [engine.submit(request) for request in requests]
    with out_of_memory(model, rows=2) as times:
        engine.step()
    assert times == [1]
    finished(engine, *jobs)
    assert [told(job.completion) for job in jobs] == expected


@pytest.mark.parametrize("error", [RuntimeError, InputError, KeyError])
def test_a_document_for_several_whose_reading_fails(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Each question is then asked with the document."""
    model = tiny_model()
    requests = [
        Request(document=ids_of(50), question=ids_of(n), options=GREEDY, method="plain")
        for n in (3, 4)
    ]
    expected = [told(Engine(model).run([request])[0]) for request in requests]

    def refuse(*_: Any) -> Any:
        raise error("no")

    monkeypatch.setattr(Plain, "read", refuse)
    engine = Engine(model)
    jobs = [engine.submit(request) for request in requests]
    finished(engine, *jobs)
    assert [told(job.completion) for job in jobs] == expected
    job = engine.read(ReadJob([ids_of(50)], Plain()))
    finished(engine, job)
    assert isinstance(job.error, error) and job.memory is None and engine.is_idle


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
def test_a_step_that_fails(static: bool) -> None:
    """Those in the slots tell why; those that wait are answered as if nothing had been."""
    engine = Engine(tiny_model(), slots=2, static=static)
    jobs = [engine.submit(prompt(6, seed, LONG)) for seed in range(5)]
    for _ in range(3):
        engine.step()
    engine.cancel(jobs[4])
    with out_of_memory(engine.model, width=1):
        moved = engine.step()
    assert set(moved) >= set(jobs[:2])
    for job in jobs[:2]:
        assert isinstance(job.error, torch.OutOfMemoryError) and len(job.token_ids) >= 3
    finished(engine, *jobs)
    for seed in (2, 3):
        alone = Engine(engine.model).run([prompt(6, seed, LONG)])[0]
        assert told(jobs[seed].completion) == told(alone)
    assert engine.is_idle and jobs[4].finish_reason == "cancelled"


def test_a_text_that_cannot_be_made_ends_its_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=2)
    jobs = [engine.submit(prompt(6, seed, LONG)) for seed in range(2)]
    push, bad = GrowingText.push, jobs[0].growing

    def broken(self: GrowingText, token_id: int) -> str:
        if self is bad and len(jobs[0].token_ids) == 5:
            raise UnicodeError("no such character")
        return push(self, token_id)

    monkeypatch.setattr(GrowingText, "push", broken)
    finished(engine, *jobs)
    assert isinstance(jobs[0].error, UnicodeError)
    assert len(jobs[1].completion.token_ids) == 40


def test_a_consumer_that_fails_leaves_nothing_behind() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=2)

    def hear(number: int, _: str) -> None:
        if number:
            raise BrokenPipeError("gone")

    with pytest.raises(BrokenPipeError):
        engine.run([prompt(6, seed, LONG) for seed in range(3)], on_text=hear)
    assert engine.is_idle
    stream = engine.stream(prompt(6, options=LONG))
    with out_of_memory(engine.model), pytest.raises(torch.OutOfMemoryError):
        next(stream)
    assert engine.is_idle


@pytest.mark.parametrize("width", [1, 2], ids=["step", "prefill"])
def test_an_interrupt_ends_the_step_and_leaves_the_engine_fit(width: int) -> None:
    engine = Engine(tiny_model(), slots=2)
    first = engine.submit(prompt(6, options=LONG))
    engine.step()
    second = engine.submit(prompt(9))

    def interrupt(_: Any, given: Any) -> None:
        if (given[0].shape[1] > 1) == (width > 1):
            raise KeyboardInterrupt

    hook = engine.model.backbone.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    hook.remove()
    left_off = second if width > 1 else first
    assert left_off.finish_reason == "cancelled"
    finished(engine, first, second)
    (done,) = engine.run([prompt(9)])
    assert told(done) == told(Engine(engine.model).run([prompt(9)])[0])


def test_rows_that_cannot_be_made_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a finished one leaves, the others' states are copied: that may fail, too."""
    engine = Engine(tiny_model(), slots=3)
    jobs = [engine.submit(prompt(6, seed, LONG)) for seed in range(3)]
    engine.step()
    with monkeypatch.context() as patch:

        def refuse(_: list[int]) -> None:
            patch.undo()
            raise torch.OutOfMemoryError("out of memory")

        patch.setattr(engine._slots.rows, "keep", refuse)
        engine.cancel(jobs[0])
    assert jobs[0].finish_reason == "cancelled"
    assert all(isinstance(job.error, torch.OutOfMemoryError) for job in jobs[1:])
    (done,) = engine.run([prompt(9)])
    assert told(done) == told(Engine(engine.model).run([prompt(9)])[0])


@pytest.mark.parametrize("name", ["whole", "chunks", "before"])
def test_every_job_ends_whatever_pass_fails(name: str) -> None:
    """An error at each of the passes in turn: every job has an answer, its own, or an error."""
    model = tiny_model()
    requests = [
        Request(document=ids_of(70, i % 2), question=ids_of(4 + i), options=GREEDY,
                method=METHODS[name])
        for i in range(4)
    ]  # fmt: skip
    expected = [told(Engine(model).run([request])[0]) for request in requests]
    passes, failed = [0], -1
    hook = model.backbone.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    Engine(model, slots=2, step_tokens=32).run(requests)
    hook.remove()
    for failed in range(passes[0]):
        count = [0]

        def refuse(*_: Any, at: int = failed, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] == at + 1:
                raise torch.OutOfMemoryError("out of memory")

        hook = model.backbone.register_forward_pre_hook(refuse)
        engine = Engine(model, slots=2, step_tokens=32)
        jobs = [engine.submit(request) for request in requests]
        finished(engine, *jobs)
        hook.remove()
        assert engine.is_idle and engine.running == engine.waiting == 0
        for job, answer in zip(jobs, expected, strict=True):
            if job.error is None:
                assert told(job.completion) == answer
            else:
                assert isinstance(job.error, torch.OutOfMemoryError)
        assert sum(job.error is None for job in jobs) >= 2
