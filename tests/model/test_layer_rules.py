"""Layer rules on scans: small cases worked out by hand, and the identities behind the methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from remamba import InputError, StateCache
from remamba.model.layer_rules import (
    KINDS,
    Decimating,
    Filtering,
    LayerRule,
    Scaling,
    StepRule,
    Steps,
)
from remamba.ops import selective_scan, ssd

NO_LIMIT = (0.0, math.inf)


def ruled(rule: StepRule | None, given: dict[str, Any], op: Callable[..., Any]) -> Any:
    """A scan whose steps a rule has changed, as a mixer does it."""
    steps = Steps(given["dt"], given["A"], None, given.get("dt_bias"), NO_LIMIT)
    if rule is not None:
        steps = rule(steps)
    return op(**{**given, "dt": steps.dt, "A": steps.A}, dt_scale=steps.scale)


def at(rule: LayerRule, layer: int = 0) -> StepRule:
    found = rule.at(layer)
    assert found is not None
    return found


def scan_inputs(op: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], Any]:
    torch.manual_seed(0)
    b, length, n = 2, 23, 8
    if op == "ssd":
        h, p, g = 4, 3, 2
        named = {
            "x": torch.randn(b, length, h, p), "dt": torch.randn(b, length, h),
            "A": -torch.rand(h), "B": torch.randn(b, length, g, n),
            "C": torch.randn(b, length, g, n), "dt_bias": torch.randn(h),
        }  # fmt: skip
    else:
        named = {
            "x": torch.randn(b, length, 6), "dt": torch.randn(b, length, 6),
            "A": -torch.rand(6, n), "B": torch.randn(b, length, n),
            "C": torch.randn(b, length, n),
        }  # fmt: skip
    given = {name: x.to(dtype) for name, x in named.items()}
    return given, (ssd if op == "ssd" else selective_scan)


BY_HAND = {
    "plain": (None, [1, 1.5, 1.75, 1.875]),
    "second token filtered": (
        at(Filtering([torch.tensor([[0.5]])], torch.tensor([4]))),
        [1, 1, 1.5, 1.75],
    ),
    "steps halved": (
        at(Scaling([0.5], "steps")),
        [0.5, 0.8535533906, 1.1035533906, 1.2803300859],
    ),
    "A halved": (at(Scaling([0.5], "A")), [1, 1.7071067812, 2.2071067812, 2.5606601718]),
    "A_log halved": (at(Scaling([0.5], "A_log")), [1, 1.5, 1.75, 1.875]),
}
"""A = -1, B = C = x = 1, no skip, steps of ln 2: what four tokens give, over ln 2."""


@pytest.mark.parametrize("name", BY_HAND)
def test_four_tokens_by_hand(name: str) -> None:
    rule, expected = BY_HAND[name]
    # softplus(0) = ln 2; where a token is filtered its step is smaller than the threshold of 0.5
    dt = torch.zeros(1, 4, 1, dtype=torch.float64)
    if name == "second token filtered":
        dt[0, 1] = -3.0
    ones = torch.ones(1, 4, 1, dtype=torch.float64)
    given = {"x": ones, "dt": dt, "A": -torch.ones(1, 1, dtype=torch.float64), "B": ones, "C": ones}
    y, _ = ruled(rule, given, selective_scan)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(y[0, :, 0] / math.log(2), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_steps_scaled_are_A_and_the_input_scaled(op: str) -> None:
    """h' = s h(sA) and y' = s y(sA), without the skip D x: to 1e-6 of the largest in float32, by
    the fastest form, and to 1e-9 in float64."""
    single, scan = scan_inputs(op)
    s = 0.7
    double = {name: t.double() if torch.is_tensor(t) else t for name, t in single.items()}
    for given, bound in ((single, 1e-6), (double, 1e-9)):
        y, state = ruled(at(Scaling([s], "steps")), given, scan)
        by_A, state_by_A = ruled(at(Scaling([s], "A")), given, scan)
        both = {**given, "A": s * given["A"], "B": s * given["B"]}
        pairs = (y, s * by_A), (state, s * state_by_A), (y, ruled(None, both, scan)[0])
        for found, expected in pairs:
            assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_what_is_filtered_in_every_channel_is_not_there(op: str) -> None:
    """State and outputs are those of the scan of the tokens that are left."""
    given, scan = scan_inputs(op)
    left = torch.tensor([0, 3, 4, 5, 11, 12, 20, 22])
    weak = torch.ones(23, dtype=torch.bool)
    weak[left] = False
    dt = given["dt"].clone()
    dt[:, weak] -= 30
    bias = given.get("dt_bias")
    thresholds = torch.full((2, dt.shape[-1]), 1e-4)
    given["dt"] = dt
    assert bool((Steps(dt, given["A"], None, bias, NO_LIMIT).delta()[:, left] > 1e-4).all())
    y, state = ruled(at(Filtering([thresholds], torch.tensor([23, 23]))), given, scan)
    gathered = {
        name: x[:, left] if name in ("x", "dt", "B", "C") else x for name, x in given.items()
    }
    expected, expected_state = ruled(None, gathered, scan)
    torch.testing.assert_close(y[:, left], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state, expected_state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_everything_filtered_leaves_the_state(op: str) -> None:
    given, scan = scan_inputs(op)
    initial = torch.randn_like(ruled(None, given, scan)[1])
    rule = at(Filtering([torch.full((2, given["dt"].shape[-1]), 1e9)], torch.tensor([23, 23])))
    y, state = ruled(rule, {**given, "initial_state": initial}, scan)
    assert torch.equal(state, initial)
    assert bool(torch.isfinite(y).all())
    y, state = ruled(rule, given, scan)
    assert not bool(state.any()) and not bool(y.any())


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_states_compose(op: str) -> None:
    """h(uv) = h(v) + exp(A sum of v's steps) h(u): what decimate and filter rest on."""
    given, scan = scan_inputs(op)
    parts = [
        {name: x[:, place] if name in ("x", "dt", "B", "C") else x for name, x in given.items()}
        for place in (slice(9), slice(9, None))
    ]
    u, v = (ruled(None, part, scan)[1] for part in parts)
    steps = Steps(parts[1]["dt"], given["A"], None, given.get("dt_bias"), NO_LIMIT)
    total, A = steps.delta().sum(dim=1), given["A"]
    decay = (
        torch.exp(total * A)[..., None, None] if op == "ssd" else torch.exp(total[..., None] * A)
    )
    whole = ruled(None, given, scan)[1]
    torch.testing.assert_close(v + decay * u, whole, rtol=1e-6, atol=1e-6)


def test_filtering_ends_at_each_rows_stop_and_goes_on_in_pieces() -> None:
    dt = torch.zeros(2, 6, 1)  # steps of ln 2 = 0.69, all below the threshold of 1
    steps = Steps(dt, -torch.ones(1, 1), None, None, NO_LIMIT)
    rule = Filtering([torch.ones(2, 1), None], torch.tensor([4, 1]))
    whole = (at(rule)(steps).delta()[..., 0] > 0).tolist()
    assert whole == [[False] * 4 + [True] * 2, [False] + [True] * 5]
    found = []
    for begin, end in ((0, 2), (2, 5), (5, 6)):
        own = rule.piece(begin, end).at(0)
        part = steps._replace(dt=dt[:, begin:end])
        found.append(part.delta() if own is None else own(part).delta())
    assert (torch.cat(found, dim=1)[..., 0] > 0).tolist() == whole
    assert rule.piece(4, 6).at(0) is None and rule.at(1) is None


def test_a_bound_on_the_steps_counts() -> None:
    """Delta is what the scan uses: clamped from above, it is compared clamped."""
    steps = Steps(torch.full((1, 1, 1), 5.0), -torch.ones(1), None, torch.zeros(1), (0.0, 0.5))
    rule = Filtering([torch.full((1, 1), 0.6)], torch.tensor([1]))
    assert float(at(rule)(steps).delta()) == 0


def strengths(*values: float) -> Steps:
    dt = torch.tensor(values)[None, :, None].expand(-1, -1, 2).contiguous()
    return Steps(dt, -torch.ones(2, 1), None, None, NO_LIMIT)


def test_the_strongest_tokens_stay_in_their_order() -> None:
    rule = Decimating({1: 3, 2: 2}, torch.tensor([5]), torch.tensor([7]))
    assert rule.at(0) is None and rule.lengths.tolist() == [4]
    first, second = at(rule, 1), at(rule, 2)
    # 0.5, 3 and 2 stay of the first five; the last two are not asked
    steps = first(strengths(0.5, -1.0, 3.0, -2.0, 2.0, -9.0, -8.0))
    assert first.kept is not None and first.kept.tolist() == [[0, 2, 4, 5, 6]]
    assert steps.scale is not None and steps.scale.tolist() == [[1, 0, 1, 0, 1, 1, 1]]
    second(strengths(-1.0, 0.2, 0.1, -9.0, -8.0))
    found = rule.index()
    assert found is not None and found.tolist() == [[2, 4, 5, 6]]


def test_of_tokens_as_strong_the_first_stay() -> None:
    rule = Decimating({0: 2}, torch.tensor([4]), torch.tensor([4]))
    at(rule)(strengths(1.0, 1.0, 1.0, 1.0))
    found = rule.index()
    assert found is not None and found.tolist() == [[0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaling_survives_its_tensors(kind: str) -> None:
    rule = Scaling([0.3, 1.0, 1.7], kind)
    assert Scaling.from_tensors(rule.tensors("x."), "x.") == rule
    assert Scaling.from_tensors(rule.tensors("x."), "y.") is None
    assert rule.at(1) is None
    cache = StateCache(2)
    for layer in range(2):
        cache.update(layer, torch.zeros(1, 1), torch.zeros(1, 1))
    cache.rule = rule
    with pytest.raises(InputError, match="2 layers have a rule of 3 factors"):
        StateCache.from_tensors(cache.tensors())


def test_steps_without_positions_keep_their_factor() -> None:
    steps = Steps(torch.zeros(1, 3, 1), -torch.ones(1), torch.tensor([[2.0, 3.0, 0.0]]), None,
                  NO_LIMIT)  # fmt: skip
    gone: Tensor = torch.tensor([[False, True, False]])
    scale = steps.without(gone).scale
    assert scale is not None and scale.tolist() == [[2, 0, 0]]
