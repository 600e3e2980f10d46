"""Draws follow the probabilities, and options out of range are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remamba import InputError
from remamba.engine.sampling import Sampler, SamplingOptions, _highest, choose


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5]])
    cases: list[tuple[dict[str, Any], torch.Tensor]] = [
        ({"temperature": 1.0}, logits[0].softmax(0)),
        ({"temperature": 0.5}, (2 * logits[0]).softmax(0)),
        ({"temperature": 1.0, "top_k": 2}, torch.tensor([0.7311, 0, 0.2689, 0, 0])),
        ({"temperature": 1.0, "top_p": 0.6}, torch.tensor([0.7311, 0, 0.2689, 0, 0])),
        ({"temperature": 1.0, "top_p": 0.1}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1.0, "top_k": 1}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1e-9}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 0.0}, torch.tensor([1.0, 0, 0, 0, 0])),
    ]
    count = 4000
    for options, expected in cases:
        samplers = [Sampler(SamplingOptions(seed=i, **options)) for i in range(count)]
        drawn = torch.tensor(choose(logits.expand(count, 5), samplers))
        shares = torch.bincount(drawn, minlength=5) / count
        assert (shares - expected).abs().max() < 0.03, options


def test_rows_of_unlike_options_share_a_step() -> None:
    logits = torch.randn(4, 30)
    options: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 99}]
    samplers = lambda: [Sampler(SamplingOptions(temperature=1.0, seed=9, **o)) for o in options]  # noqa: E731
    together = choose(logits, samplers())
    alone = [choose(logits[i : i + 1], [s])[0] for i, s in enumerate(samplers())]
    assert together == alone


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"stop": ("a", "")},
        {"min_new_tokens": -1},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"stop_token_ids": (3, -1)},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        SamplingOptions(**options)


def test_ends_are_forbidden_for_the_first_tokens() -> None:
    """Token 2 is the likeliest, then 0, then 1: by hand."""
    logits = torch.tensor([[2.0, 1.0, 3.0]]).expand(3, 3)
    rows = [
        Sampler(SamplingOptions(min_new_tokens=2), frozenset({2})),
        Sampler(SamplingOptions(min_new_tokens=1, stop_token_ids=(0,)), frozenset({2})),
        Sampler(SamplingOptions(min_new_tokens=9, ignore_eos=True), frozenset({2})),
    ]
    assert [choose(logits, rows) for _ in range(3)] == [[0, 1, 2], [0, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize("vocab", [1, 97, 128, 240, 1000])
def test_the_largest_is_found_in_two_steps(vocab: int) -> None:
    logits = torch.randn(3, vocab)
    values, places = _highest(logits)
    assert torch.equal(values, logits.max(1).values)
    assert torch.equal(places, logits.argmax(1))
    logits[1, vocab // 2] = float("nan")
    values, places = _highest(logits)
    assert values.isnan().tolist() == [False, True, False]
    assert places[1] == vocab // 2
