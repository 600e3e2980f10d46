"""filter, scale and decimate: equal however they are run, and worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remamba import InputError, ReMambaForCausalLM, StateCache
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.execution import decode, prefill
from remamba.execution.decode import decodes_in_place
from remamba.methods.base import Method
from remamba.methods.decimate import Decimate
from remamba.methods.filter import Filter
from remamba.methods.rule_table import RuleTable, load_table
from remamba.methods.scale import Scale
from remamba.methods.shorten import Last
from tests.exactness import BACKBONES, tiny_model, tokens
from tests.rules import filter_of, layer_rules

LENGTH, QUESTION = 40, 5


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def lively_model(backbone: str, **changes: Any) -> ReMambaForCausalLM:
    """A tiny model whose layers say much, so that another rule gives other logits."""
    model = tiny_model(backbone, **changes)
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.out_proj.weight.mul_(6)
            block.mixer.D.mul_(0.1)
            if backbone != "mamba2":
                block.mixer.x_proj.weight.mul_(4)
            dt = block.mixer.dt_bias if backbone == "mamba2" else block.mixer.dt_proj.bias
            dt.add_(2)
    return model


RULES = ("filter", "scale-steps", "scale-A", "scale-A_log", "decimate", "last+scale")


@pytest.fixture(params=BACKBONES)
def model(request: pytest.FixtureRequest) -> ReMambaForCausalLM:
    return lively_model(request.param, eos_token_id=None)


@pytest.fixture(params=RULES)
def method(request: pytest.FixtureRequest, model: ReMambaForCausalLM, tmp_path: Path) -> Method:
    if request.param == "last+scale":
        return Last(tokens=30, reader=Scale(factor=0.5))
    return layer_rules(model, tmp_path)[request.param]


def asked(rows: int = 2) -> dict[str, Tensor]:
    return {"question_lengths": torch.full((rows,), QUESTION)}


@torch.no_grad()
def test_it_changes_what_is_read(model: ReMambaForCausalLM, method: Method) -> None:
    """Else every equality below would hold for a rule that nobody applies."""
    ids = tokens(2, LENGTH)
    found = model(ids, method=method, logits_to_keep=1, **asked()).logits
    plain = model(ids, method="plain", logits_to_keep=1).logits
    assert float((found - plain).abs().max()) > 1e-2 * float(plain.abs().max())


@torch.no_grad()
def test_decoding_equals_the_parallel_forward(model: ReMambaForCausalLM, method: Method) -> None:
    ids, prompt = tokens(2, LENGTH + 8), torch.tensor([LENGTH, LENGTH])
    whole = model(ids, prompt_lengths=prompt, method=method, **asked()).logits[:, -8:]
    cache = model(ids[:, :LENGTH], method=method, **asked()).cache_params
    steps = [model(ids[:, i : i + 1], cache_params=cache).logits for i in range(LENGTH, LENGTH + 8)]
    assert_close(torch.cat(steps, dim=1), whole)
    cache = model(ids[:, :LENGTH], method=method, **asked()).cache_params
    assert_close(model(ids[:, LENGTH:], cache_params=cache).logits, whole)


@pytest.mark.parametrize("piece", [3, 16])
@torch.no_grad()
def test_pieces_equal_the_whole(model: ReMambaForCausalLM, method: Method, piece: int) -> None:
    ids, mask = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 31:] = 0
    given = {"method": method, "logits_to_keep": 4, **asked()}
    whole = model(ids, mask, **given)
    pieces = model(ids, mask, piece_length=piece, **given)
    assert_close(pieces.logits, whole.logits)
    for kind in ("conv_states", "ssm_states"):
        states = zip(
            getattr(pieces.cache_params, kind), getattr(whole.cache_params, kind), strict=True
        )
        for found, expected in states:
            assert_close(found, expected)


@torch.no_grad()
def test_rows_of_a_batch_are_as_alone(model: ReMambaForCausalLM, method: Method) -> None:
    """Rows below and above the filter's first length, and such as decimate leaves whole."""
    lengths = (LENGTH, 26, 11)
    ids, mask = tokens(3, LENGTH), torch.zeros(3, LENGTH, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, LENGTH - length :] = 1
    out = model(ids, mask, method=method, **asked(3))
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, LENGTH - length :], method=method, **asked(1)).logits[0]
        assert_close(out.logits[row, -len(alone) :], alone)


@torch.no_grad()
def test_a_memory_equals_the_unsplit_prompt_and_saved_equals_kept(
    model: ReMambaForCausalLM, method: Method, tmp_path: Path
) -> None:
    documents, questions = tokens(2, LENGTH - QUESTION), tokens(4, QUESTION, seed=2)
    unsplit = torch.cat([documents.repeat_interleave(2, 0), questions], dim=1)
    whole = model(unsplit, method=method, **asked(4))
    memory = model.read(documents, method=method)
    memory.save(tmp_path / "memory")
    loaded = model.load_memory(tmp_path / "memory")
    assert loaded.method == memory.method == method
    more = tokens(4, 3, seed=3)
    behind = model(more, cache_params=whole.cache_params).logits
    for one in (memory, loaded):
        found = model(questions, memory=one)
        assert_close(found.logits, whole.logits[:, -QUESTION:])
        assert_close(model(more, cache_params=found.cache_params).logits, behind)


@torch.no_grad()
def test_states_keep_their_rule(model: ReMambaForCausalLM, tmp_path: Path) -> None:
    """Through files, selections, copies and beams."""
    method, ids, more = Scale(factor=0.5), tokens(2, 20), tokens(2, 3, seed=1)
    cache = model(ids, method=method).cache_params
    expected = model(more, cache_params=cache.copy()).logits
    plain = model(more, cache_params=model(ids, method="plain").cache_params).logits
    assert float((expected - plain).abs().max()) > 1e-2
    cache.save(tmp_path / "state")
    joined = StateCache.side_by_side([cache.select(torch.tensor([i])) for i in (0, 1)])
    turned = cache.copy()
    turned.reorder_cache(torch.tensor([1, 0]))
    turned.reorder_cache(torch.tensor([1, 0]))
    for one in (StateCache.load(tmp_path / "state"), joined, turned, cache.clone()):
        assert_close(model(more, cache_params=one).logits, expected)
    cache.reset()
    assert cache.rule is None


@torch.no_grad()
def test_fast_paths_that_know_no_rule_are_left(
    model: ReMambaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a GPU were there: no step in place, no prefill by a graph; plain takes both."""

    def asked_for_a_graph(_: object) -> None:
        raise LookupError

    ids, one = tokens(2, 20), tokens(2, 1)
    caches = {
        name: model(ids, method=method).cache_params
        for name, method in {"plain": "plain", **layer_rules(model, tmp_path)}.items()
    }
    monkeypatch.setattr(decode, "runs_in_place", lambda *_: True)
    in_place = {name for name, cache in caches.items() if decodes_in_place(model, one, cache)}
    # filter and decimate leave states that decoding goes on from as plain Mamba
    assert in_place == {"plain", "filter", "decimate"}
    with pytest.raises(AssertionError, match="reads as plain Mamba"):
        decode.DecodeStep(model, 2).load(caches["scale-A"], 0)
    monkeypatch.setattr(prefill, "can_capture", lambda *_: True)
    monkeypatch.setattr(prefill, "graphs_of", asked_for_a_graph)
    for method in layer_rules(model, tmp_path).values():
        model(ids, method=method)
    model(tokens(2, 3), cache_params=caches["scale-steps"])
    with pytest.raises(LookupError):
        model(ids, method="plain")
    with pytest.raises(LookupError):
        model(tokens(2, 3), cache_params=caches["filter"])


@pytest.mark.parametrize("method", ["filter", "scale-steps", "decimate"], indirect=True)
@torch.no_grad()
def test_generate_and_the_engine_write_by_the_rule(
    model: ReMambaForCausalLM, method: Method
) -> None:
    """As the argmax of forwards; beside answers by other rules, with states in place too."""
    ids = tokens(1, LENGTH)
    row, prompt = ids, torch.tensor([LENGTH])
    for _ in range(4):
        logits = model(row, prompt_lengths=prompt, method=method, **asked(1)).logits
        row = torch.cat([row, logits[:, -1:].argmax(-1)], dim=1)
    steps = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, method=method, **asked(1), **steps)
    assert torch.equal(found, row)
    plain = model.generate(ids, method="plain", **steps)
    document, question = ids[0, :-QUESTION].tolist(), ids[0, -QUESTION:].tolist()
    greedy = SamplingOptions(max_new_tokens=4)
    ways = [method, "plain", method]
    requests = [
        Request(document=document, question=question, options=greedy, method=way) for way in ways
    ]
    for static in (False, True):
        done = Engine(model, None, slots=2, static=static).run(requests)
        for way, completion in zip(ways, done, strict=True):
            expected = plain if way == "plain" else row
            assert completion.token_ids == expected[0, LENGTH:].tolist()


@torch.no_grad()
def test_a_loss_stays_that_of_the_answer(model: ReMambaForCausalLM, method: Method) -> None:
    ids = tokens(1, LENGTH + 4)
    labels = torch.where(torch.arange(LENGTH + 4) < LENGTH, -100, ids)
    out = model(ids, labels=labels, method=method, **asked(1))
    logits = model(ids, prompt_lengths=torch.tensor([LENGTH]), method=method, **asked(1)).logits
    expected = torch.nn.functional.cross_entropy(logits[0, -5:-1], ids[0, LENGTH:])
    assert_close(out.loss, expected)


@torch.no_grad()
def test_a_memory_of_another_rule_is_refused(model: ReMambaForCausalLM, tmp_path: Path) -> None:
    ids, question = tokens(1, LENGTH), tokens(1, 4)
    filtered = filter_of(model, tmp_path)
    for one, other in (
        (Scale(factor=0.5), Scale(factor=0.6)),
        (Scale(factor=0.5), "plain"),
        ("plain", Scale(factor=0.5)),
        ("plain", filtered),
        (filtered, "plain"),
        (Decimate(20), "plain"),
    ):
        memory = model.read(ids, method=one)
        with pytest.raises(InputError, match="its states cannot serve the method") as caught:
            model(question, memory=memory, method=other)
        assert "\n" not in str(caught.value)
    cache = model(ids, method=Scale(factor=0.5)).cache_params
    for other in ("plain", Scale(factor=0.6)):
        with pytest.raises(InputError, match="which its states' own rule goes on with"):
            model(question, cache_params=cache, method=other)


@torch.no_grad()
def test_what_changes_nothing_is_plain_to_the_bit(
    model: ReMambaForCausalLM, tmp_path: Path
) -> None:
    ids = tokens(2, LENGTH)
    expected = model(ids, method="plain").logits
    assert torch.equal(model(ids, method=Scale(factor=1.0)).logits, expected)
    assert torch.equal(model(ids, method=Scale(factor=1, of="A_log")).logits, expected)
    assert torch.equal(model(ids, method=Decimate(tokens=LENGTH)).logits, expected)
    assert torch.equal(model(ids, method=Decimate(tokens=1, layers=())).logits, expected)
    filtered = filter_of(model, tmp_path)
    short = ids[:, :11]
    found = model(short, method=filtered).logits
    assert torch.equal(found, model(short, method="plain").logits)
    table = load_table(filtered.rule)
    for layer in table.values["layers"]:
        layer["thresholds"] = [[0.0] * len(layer["channels"])] * 2
    RuleTable("filter", table.fingerprint, table.values).save(tmp_path / "zero.json")
    assert torch.equal(model(ids, method=Filter(str(tmp_path / "zero.json"))).logits, expected)
