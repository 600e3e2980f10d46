"""Log-probabilities of drawn tokens and of prompts, and several answers of one prefill."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from remamba import InputError
from remamba.engine import entering
from remamba.engine.engine import Completion, Engine, Request, SamplingOptions
from tests.engine.test_steps import METHODS, finished, ids_of, told
from tests.tiny import tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3},
    "forbidden": {"stop_token_ids": tuple(range(170)), "min_new_tokens": 9},
}


def own_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """(l - 1, vocab) by the model's own forward: row i is of the token at i + 1."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), compression=False).logits
    return logits[0, :-1].float().log_softmax(dim=-1)


def check(found: Completion, ids: list[int], count: int, expected: torch.Tensor) -> None:
    """Each token's, and the likeliest ones', against the rows behind the prompt."""
    assert found.logprobs is not None
    assert [one.token_id for one in found.logprobs] == found.token_ids
    for at, one in enumerate(found.logprobs):
        row = expected[len(ids) - 1 + at]
        assert one.logprob == pytest.approx(row[one.token_id].item(), rel=1e-5, abs=1e-5)
        best = row.topk(count)
        assert [token for token, _ in one.likeliest] == best.indices.tolist()
        values = [value for _, value in one.likeliest]
        assert values == pytest.approx(best.values.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
@pytest.mark.parametrize("drawn", OPTIONS)
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_they_are_the_models_own(backbone: str, drawn: str, static: bool) -> None:
    """Neither temperature nor forbidden tokens change them; each row gets as many as it asked."""
    model = tiny_model(backbone)
    counts = [0, 3, 20, None]
    requests = [
        Request(
            prompt=ids_of(9 + n),
            options=SamplingOptions(9, ignore_eos=True, logprobs=count, **OPTIONS[drawn]),
            method="plain",
        )
        for n, count in enumerate(counts)
    ]
    done = Engine(model, slots=3, static=static, step_tokens=8).run(requests)
    for count, request, found in zip(counts, requests, done, strict=True):
        if count is None:
            assert found.logprobs is None
            continue
        assert isinstance(request.prompt, list)
        ids = [*request.prompt, *found.token_ids]
        check(found, request.prompt, count, own_logprobs(model, ids))
    plain = Engine(model).run(
        [Request(prompt=ids_of(9), options=SamplingOptions(9, ignore_eos=True, **OPTIONS[drawn]),
                 method="plain")]
    )  # fmt: skip
    assert plain[0].token_ids == done[0].token_ids


@pytest.mark.gpu
def test_they_are_the_models_own_on_a_gpu() -> None:
    model = tiny_model().to("cuda")
    options = SamplingOptions(9, logprobs=5, ignore_eos=True)
    requests = [Request(prompt=ids_of(n), options=options, method="plain") for n in (9, 30, 4)]
    done = Engine(model, slots=2).run(requests)
    model.to("cpu")
    for request, found in zip(requests, done, strict=True):
        assert isinstance(request.prompt, list)
        check(found, request.prompt, 5, own_logprobs(model, [*request.prompt, *found.token_ids]))


@pytest.mark.parametrize("at_once", [4, 512])
@pytest.mark.parametrize("step_tokens", [None, 7])
def test_of_prompts(monkeypatch: pytest.MonkeyPatch, step_tokens: int | None, at_once: int) -> None:
    """Every token but the first; the answers behind them are those without."""
    monkeypatch.setattr(entering, "TOLD_AT_ONCE", at_once)
    model = tiny_model()
    lengths, options = (1, 2, 30, 25), SamplingOptions(5, logprobs=2)
    requests = [
        Request(prompt=ids_of(n), options=options, method="plain", prompt_logprobs=2)
        for n in lengths
    ]
    engine = Engine(model, slots=4, step_tokens=step_tokens)
    silent = [Request(prompt=ids_of(n), options=options, method="plain") for n in lengths]
    done = engine.run([*requests, *silent])
    for length, found, other in zip(lengths, done, done[4:], strict=False):
        assert told(found) == told(other) and other.prompt_logprobs is None
        ids = ids_of(length)
        tokens = found.prompt_logprobs
        assert tokens is not None and len(tokens) == length and tokens[0] is None
        rows = own_logprobs(model, ids)
        for row, token, one in zip(rows, ids[1:], tokens[1:], strict=True):
            assert one is not None and one.token_id == token
            assert one.logprob == pytest.approx(row[token].item(), rel=1e-5, abs=1e-5)
            assert [best for best, _ in one.likeliest] == row.topk(2).indices.tolist()


@pytest.mark.parametrize("slots", [2, 5])
@pytest.mark.parametrize("name", ["plain", "whole", "paper", "chunks"])
@pytest.mark.parametrize("form", ["document", "memory"])
def test_forks_equal_requests_of_their_own(name: str, slots: int, form: str) -> None:
    """Answer i is that of the seed i higher; one prefill for all, also with fewer slots."""
    if form == "memory" and name == "paper":
        pytest.skip("no memory serves these settings")
    model, method = tiny_model(), METHODS[name]
    given: dict[str, Any] = {"document": ids_of(60)}
    if form == "memory":
        given = {"memory": model.read(torch.tensor([ids_of(60)]), method=method)}
    options = SamplingOptions(12, temperature=1.0, seed=11, logprobs=1)
    request = Request(**given, question=ids_of(5), options=options, method=method)
    apart = [
        Request(**given, question=ids_of(5), method=method,
                options=SamplingOptions(12, temperature=1.0, seed=11 + i, logprobs=1))
        for i in range(4)
    ]  # fmt: skip
    expected = [Engine(model).run([one])[0] for one in apart]
    passes: list[int] = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, inputs: passes.append(inputs[0].shape[1])
    )
    Engine(model).run(apart[:1])
    once = sum(width for width in passes if width > 1)
    passes.clear()
    engine = Engine(model, slots=slots)
    beside = engine.submit(Request(prompt=ids_of(4), options=SamplingOptions(20), method="plain"))
    engine.step()
    passes.clear()
    job = engine.submit(request, count=4)
    finished(engine, job, *job.forks, beside)
    hook.remove()
    assert sum(width for width in passes if width > 1) == once
    found = [one.completion for one in (job, *job.forks)]
    assert [told(one) for one in found] == [told(one) for one in expected]
    assert len({tuple(one.token_ids) for one in found}) > 1
    assert engine.is_idle


@pytest.mark.parametrize("left", ["first", "fork", "all"])
@pytest.mark.parametrize("steps", [0, 2, 9])
def test_leaving_some_of_several_answers(left: str, steps: int) -> None:
    """The others go on; when all have left, nothing is read any more."""
    engine = Engine(tiny_model(), slots=2, step_tokens=8)
    options = SamplingOptions(12, temperature=1.0, seed=4, ignore_eos=True)
    request = Request(prompt=ids_of(40), options=options, method="plain")
    expected = [
        Engine(engine.model).run(
            [Request(prompt=ids_of(40), method="plain",
                     options=SamplingOptions(12, temperature=1.0, seed=4 + i, ignore_eos=True))]
        )[0]
        for i in range(3)
    ]  # fmt: skip
    job = engine.submit(request, count=3)
    jobs = [job, *job.forks]
    for _ in range(steps):
        engine.step()
    leaving = {"first": [job], "fork": [job.forks[1]], "all": jobs}[left]
    engine.cancel(*leaving)
    if left == "all":
        assert engine.is_idle
    finished(engine, *jobs)
    for number, one in enumerate(jobs):
        if one in leaving:
            assert one.completion.finish_reason == "cancelled"
        else:
            assert told(one.completion) == told(expected[number])
    assert engine.is_idle


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingOptions(logprobs=21), r"logprobs = 21 is outside \[0, 20\]"),
        (lambda: SamplingOptions(logprobs=-1), "logprobs = -1"),
        (lambda: Request(prompt=[1], prompt_logprobs=21), "prompt_logprobs = 21"),
        (
            lambda: Request(document=[1], question=[2], prompt_logprobs=1),
            "prompt_logprobs are told of a prompt in one part",
        ),
        (
            lambda: Engine(tiny_model()).submit(
                Request(prompt=[1], prompt_logprobs=1, method="last")
            ),
            "only plain reads a prompt as it stands",
        ),
        (lambda: Engine(tiny_model()).submit(Request(prompt=[1]), count=0), "count = 0"),
        (
            lambda: Engine(tiny_model()).submit(
                Request(prompt=[1], method=METHODS["random"]), count=2
            ),
            "reads anew for each seed",
        ),
    ],
)
def test_what_cannot_be_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_more_than_the_vocabulary() -> None:
    """Of a model that knows fewer tokens than are asked for, all are told."""
    model = tiny_model(vocab_size=7)
    options = SamplingOptions(3, logprobs=20, ignore_eos=True)
    (found,) = Engine(model).run([Request(prompt=[1, 2], options=options, method="plain")])
    assert found.logprobs is not None
    for one in found.logprobs:
        assert len(one.likeliest) == 7
        assert sum(math.exp(value) for _, value in one.likeliest) == pytest.approx(1, abs=1e-5)
