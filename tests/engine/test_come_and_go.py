"""Requests that come, leave and fail in any order: every answer is as if it were alone."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.engine.entering import ReadJob
from remamba.methods.memory import DocumentMemory
from tests.engine.test_steps import METHODS, ids_of, told
from tests.tiny import tiny_model

NAMES = ("plain", "whole", "paper", "chunks", "last", "before", "random")


@cache
def model() -> Any:
    return tiny_model()


@cache
def memory(name: str, length: int) -> DocumentMemory:
    return model().read(torch.tensor([ids_of(length)]), method=METHODS[name])


def request(number: int) -> Request:
    """One of 60 requests of every kind."""
    chance = random.Random(number)
    name = chance.choice(NAMES)
    method, length = METHODS[name], chance.choice((20, 50, 90))
    options = SamplingOptions(
        chance.randint(1, 12), temperature=chance.choice((0.0, 1.0)), seed=number,
        logprobs=chance.choice((None, 2)),
    )  # fmt: skip
    given: dict[str, Any] = {"document": ids_of(length), "question": ids_of(3 + number % 4)}
    if name in ("whole", "plain", "chunks") and chance.random() < 0.4:
        given = {"memory": memory(name, length), "question": ids_of(3 + number % 4)}
    elif name == "plain" and chance.random() < 0.5:
        given = {"prompt": ids_of(length), "prompt_logprobs": chance.choice((None, 1))}
    return Request(**given, options=options, method=method, client=str(number % 3))


@cache
def alone(number: int, fork: int) -> tuple[Any, ...]:
    given = request(number)
    options = SamplingOptions(**{**vars(given.options), "seed": given.options.seed + fork})
    parts = {name: value for name, value in vars(given).items() if name != "options"}
    (found,) = Engine(model()).run([Request(**parts, options=options)])
    return told(found)


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
@pytest.mark.parametrize("seed", range(12))
def test_any_order(seed: int, static: bool) -> None:
    chance = random.Random(seed)
    step_tokens = chance.choice((None, 7, 30))
    engine = Engine(model(), slots=chance.choice((1, 2, 4)), static=static, step_tokens=step_tokens)
    failing, times = chance.random() < 0.5, [0]

    def refuse(*_: Any) -> None:
        times[0] += 1
        if failing and times[0] % 53 == 0:
            raise torch.OutOfMemoryError("out of memory")

    jobs: list[tuple[int, int, Any]] = []
    readings: list[ReadJob] = []
    expected: dict[int, tuple[Any, ...]] = {}
    asked = [chance.randrange(60) for _ in range(25)]
    for number in asked:
        forks = 2 if number % 7 == 0 and not request(number).method.draws else 0  # type: ignore[union-attr]
        for fork in range(forks + 1):
            expected[len(expected)] = alone(number, fork)
    hook = model().backbone.register_forward_pre_hook(refuse)
    try:
        for number in asked:
            forks = 2 if number % 7 == 0 and not request(number).method.draws else 0  # type: ignore[union-attr]
            lead = engine.submit(request(number), count=forks + 1)
            jobs += [(number, fork, job) for fork, job in enumerate((lead, *lead.forks))]
            if chance.random() < 0.2:
                readings.append(engine.read(ReadJob([ids_of(40)], METHODS["whole"])))
            for _ in range(chance.randrange(4)):
                engine.step()
            if chance.random() < 0.3:
                engine.cancel(chance.choice(jobs)[2])
            if readings and chance.random() < 0.1:
                engine.cancel(chance.choice(readings))
        while not engine.is_idle:
            engine.step()
    finally:
        hook.remove()
    answered = 0
    for place, (_, _, job) in enumerate(jobs):
        assert job.is_finished
        if job.error is not None:
            assert failing and isinstance(job.error, torch.OutOfMemoryError)
        elif job.finish_reason == "cancelled":
            tokens = expected[place][0]
            assert job.token_ids == tokens[: len(job.token_ids)]
        else:
            assert told(job.completion) == expected[place]
            answered += 1
    assert answered > (0 if failing else 10)
    assert all(reading.is_finished for reading in readings)
    assert engine.running == engine.waiting == 0
