"""Prefill graphs: shapes and their buckets, what ends a graph, and no wait for the device."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from remamba.execution import prefill
from remamba.execution.passes import PassOptions
from remamba.execution.prefill import MOST_TOKENS, bucket, graphs_of
from remamba.execution.steps import finish
from remamba.execution.watch import Watch
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.model.rows import enter
from tests.exactness import BACKBONES, FORMS, error, questions, tiny_model, tokens


class FakeGraph:
    """As Graph, on the CPU: static inputs and outputs, whose contents a next call overwrites."""

    calls = 0

    def __init__(self, function, inputs=(), pool=None):
        self.function, self.inputs = function, tuple(tensor.clone() for tensor in inputs)
        assert not torch.is_grad_enabled()
        function(*self.inputs)
        self.outputs = tuple(x.clone() for x in function(*self.inputs))
        self.pool = pool or object()

    def __call__(self, *inputs):
        type(self).calls += 1
        for static, new in zip(self.inputs, inputs, strict=True):
            assert static.shape == new.shape and static.dtype == new.dtype
            static.copy_(new)
        for static, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            static.copy_(new)
        return self.outputs


@pytest.fixture
def fake(monkeypatch):
    """Passes without gradients are captured on the CPU, by FakeGraph; its count begins at 0."""
    FakeGraph.calls = 0
    monkeypatch.setattr(prefill, "Graph", FakeGraph)
    monkeypatch.setattr(prefill, "can_capture", lambda backbone, _: not torch.is_grad_enabled())
    return FakeGraph


def test_buckets_hold_their_lengths_and_pad_little():
    found = [bucket(length) for length in range(1, MOST_TOKENS + 1)]
    assert all(length <= b < length + 256 for length, b in enumerate(found, 1))
    assert all(b < length + 64 for length, b in enumerate(found[:2048], 1))
    assert all(b <= 1.0625 * length for length, b in enumerate(found, 1) if length >= 512)
    assert found == sorted(found) and bucket(MOST_TOKENS) == MOST_TOKENS
    assert {bucket(b) for b in found} == set(found)


def run(model, ids, **options):
    with torch.inference_mode():
        return model(ids, use_cache=True, **options)


def same(model, ids, **options):
    """Error of the passes with graphs against those without, over logits and states."""
    prefill_limit, prefill.MOST_TOKENS = prefill.MOST_TOKENS, 0
    try:
        expected = run(model, ids, **options)
    finally:
        prefill.MOST_TOKENS = prefill_limit
    found = run(model, ids, **options)
    pairs = [(found.logits, expected.logits)]
    for name in ("conv_states", "ssm_states"):
        pairs += zip(*(getattr(o.cache_params, name) for o in (found, expected)), strict=True)
    return max(error(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_graph_equals_eager(fake, backbone, form):
    model = tiny_model(backbone)
    options = {"compression": FORMS[form], **questions(form, 4, 4)}
    for seed in range(3):
        assert same(model, tokens(2, 30, seed=seed), **options) < 1e-5
    assert fake.calls >= 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_rows_of_other_lengths_share_a_graph(fake, side):
    model = tiny_model("mamba2")
    for seed, width in enumerate((30, 40, 64, 25)):
        mask = torch.ones(2, width, dtype=torch.long)
        mask[1, : 7 + seed] = 0
        mask = mask if side == "left" else mask.flip(1)
        ids = tokens(2, width, seed=seed)
        assert same(model, ids, attention_mask=mask, compression=False) < 1e-5
    assert fake.calls == 3
    assert len(graphs_of(model.backbone).captured) == 1


def test_a_text_goes_on_in_a_graph_and_keeps_its_own_states(fake):
    model = tiny_model("mamba")
    whole = model(tokens(1, 40), compression=False).logits
    caches = []
    for _ in range(3):
        first = run(model, tokens(1, 40)[:, :15], compression=False).cache_params
        kept = first.clone()
        out = run(model, tokens(1, 40)[:, 15:], cache_params=first)
        assert error(out.logits, whole[:, 15:]) < 1e-5
        caches.append((first, first.clone()))
        run(model, tokens(1, 25, seed=9), cache_params=kept)
    assert fake.calls == 2 + 5
    for cache, copied in caches:
        for name in ("conv_states", "ssm_states"):
            for a, b in zip(getattr(cache, name), getattr(copied, name), strict=True):
                assert torch.equal(a, b), "a later replay overwrote the states of an earlier one"


def test_questions_on_a_memory(fake):
    model, settings = tiny_model("mamba2"), FORMS["before"]
    with torch.inference_mode():
        memory = model.read(tokens(1, 25), compression=settings)
    for seed in range(3):
        assert same(model, tokens(3, 9, seed=seed), memory=memory) < 1e-5
    assert fake.calls >= 4


def test_what_stands_behind_a_text_does_not_matter(fake):
    model = tiny_model("mamba")
    embeds = model.get_input_embeddings()(tokens(1, 40))
    for _ in range(2):
        with torch.no_grad():
            model(inputs_embeds=embeds * torch.nan, compression=False, return_logits=False)
    assert fake.calls == 1
    assert same(model, tokens(1, 30), compression=False) < 1e-5
    assert fake.calls == 2


def captured(model):
    """How many graphs there are after two further passes; the same text is read."""
    for _ in range(2):
        assert same(model, tokens(1, 30), compression=False) < 1e-5
    return len(graphs_of(model.backbone).captured)


def replace_in_place(model):
    with torch.no_grad():
        model.backbone.layers[1].mixer.A_log.mul_(1.1)


def replace_data(model):
    weight = model.backbone.layers[0].mixer.in_proj.weight
    weight.data = weight.data * 2


def replace_by_assignment(model):
    other = {name: x * 1.5 for name, x in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def replace_a_module(model):
    mixer = model.backbone.layers[0].mixer
    mixer.in_proj = copy.deepcopy(mixer.in_proj)
    with torch.no_grad():
        mixer.in_proj.weight.neg_()


def convert(model):
    model.double().float()


@pytest.mark.parametrize(
    "change", [replace_in_place, replace_data, replace_by_assignment, replace_a_module, convert]
)
def test_changed_weights_end_the_graphs(fake, change):
    model = tiny_model("mamba")
    assert captured(model) == 1
    before, old = fake.calls, list(graphs_of(model.backbone).captured.values())
    change(model)
    assert captured(model) == 1
    assert fake.calls == before + 1, "the first pass after the change is no replay"
    assert list(graphs_of(model.backbone).captured.values()) != old


def test_hooks_and_foreign_modules_are_never_captured(fake):
    model = tiny_model("mamba")
    assert captured(model) == 1
    seen = []
    hook = model.backbone.layers[0].mixer.register_forward_hook(lambda *_: seen.append(1))
    calls = fake.calls
    assert captured(model) == 1 and fake.calls == calls and len(seen) == 4
    hook.remove()
    assert captured(model) == 1 and fake.calls == calls + 2

    class Adapter(torch.nn.Linear):
        pass

    model.backbone.layers[0].mixer.in_proj.__class__ = Adapter
    graphs_of(model.backbone).__init__()
    assert captured(model) == 0


def test_several_models_and_backends_at_once(fake, monkeypatch):
    first, second = tiny_model("mamba"), tiny_model("mamba2")
    for model in (first, second, first, second):
        captured(model)
    assert fake.calls == 2 * 3
    monkeypatch.setenv("REMAMBA_BACKEND", "ref")
    assert captured(first) == 2
    assert copy.deepcopy(first).backbone not in prefill._graphs
    for kept in graphs_of(first.backbone).captured.values():
        kept.graph.function = None  # which Graph itself does not keep
    backbone = weakref.ref(first.backbone)
    del first, model
    gc.collect()
    assert backbone() is None, "the graphs keep their model alive"


def test_the_graph_used_longest_ago_goes_first_but_not_for_a_rarer_one(fake, monkeypatch):
    model = tiny_model("mamba")
    for length in (30, 90, 30, 90):
        run(model, tokens(1, length), compression=False)
    graphs = graphs_of(model.backbone)
    assert [shape.length for shape in graphs.captured] == [64, 128]
    run(model, tokens(1, 30), compression=False)
    assert [shape.length for shape in graphs.captured] == [128, 64]
    monkeypatch.setattr(prefill, "MOST_BYTES", graphs.bytes - 1)
    for _ in range(2):
        run(model, tokens(1, 150), compression=False)
    assert [shape.length for shape in graphs.captured] == [128, 64], "asked as often as the oldest"
    run(model, tokens(1, 150), compression=False)
    assert [shape.length for shape in graphs.captured] == [64, 192]


def test_long_texts_and_single_tokens_are_read_as_they_are(fake, monkeypatch):
    model = tiny_model("mamba")
    monkeypatch.setattr(prefill, "MOST_TOKENS", 64)
    for _ in range(3):
        out = run(model, tokens(1, 65), compression=False)
        run(model, tokens(1, 1), cache_params=out.cache_params)
        run(model, tokens(2, 33), compression=False)
    assert fake.calls == 0


def test_only_what_a_graph_can_hold_is_captured():
    model = tiny_model("mamba").train()
    embeds = model.get_input_embeddings()(tokens(1, 5))
    with torch.no_grad():
        assert not prefill.can_capture(model.backbone, embeds), "there is no graph on a CPU"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_part_of_a_backbone_is_known(backbone):
    model = tiny_model(backbone)
    assert Watch(model.backbone, model.lm_head).is_known


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("form", "dtype"),
    # in bfloat16 two scores may fall together, and what is kept is then another
    [*((form, torch.float32) for form in [*FORMS, "plain"]), ("plain", torch.bfloat16)],
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_graph_equals_eager_on_a_gpu(backbone, form, dtype, tolerance):
    model = tiny_model(backbone).to("cuda", dtype)
    options = {"compression": FORMS.get(form, False), **questions(form, 4, 4)}
    for seed, width in enumerate((30, 30, 41, 64, 64, 64)):
        ids = tokens(2, width, seed=seed).cuda()
        assert same(model, ids, **options) <= tolerance[dtype][0]
    assert graphs_of(model.backbone).captured


@pytest.mark.gpu
def test_graphs_of_unequal_rows_and_of_texts_that_go_on_on_a_gpu():
    model = tiny_model("mamba").cuda()
    for seed, width in enumerate((30, 40, 64, 25)):
        mask = torch.ones(2, width, dtype=torch.long)
        mask[1, : 7 + seed] = 0
        ids = tokens(2, width, seed=seed).cuda()
        assert same(model, ids, attention_mask=mask.cuda(), compression=False) < 1e-5
    whole = model(tokens(1, 40).cuda(), compression=False).logits
    for _ in range(3):
        first = run(model, tokens(1, 40)[:, :15].cuda(), compression=False).cache_params
        out = run(model, tokens(1, 40)[:, 15:].cuda(), cache_params=first)
        assert error(out.logits, whole[:, 15:]) < 1e-5
    assert len(graphs_of(model.backbone).captured) == 3


@pytest.mark.gpu
@pytest.mark.parametrize(
    "change", [replace_in_place, replace_data, replace_by_assignment, replace_a_module, convert]
)
def test_changed_weights_are_seen_on_a_gpu(change):
    model = tiny_model("mamba").cuda()
    ids = tokens(1, 30).cuda()
    for _ in range(2):
        for _ in range(3):
            assert same(model, ids, compression=False) < 1e-5
        assert len(graphs_of(model.backbone).captured) == 1
        change(model)


@pytest.mark.gpu
@pytest.mark.parametrize("form", [*FORMS, "plain"])
@pytest.mark.parametrize("width", [30, 2100], ids=["graph", "eager"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_stage_waits_on_a_gpu(backbone, width, form):
    model = tiny_model(backbone).cuda()
    mask = torch.ones(2, width, dtype=torch.long)
    mask[1, :7] = 0
    batch = enter(tokens(2, width).cuda(), mask, **questions(form, 4, 4))
    method = ReMamba(FORMS[form]) if form in FORMS else Plain()
    for mode in ("default", "default", "default", "error"):  # compiled, captured, then watched
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.inference_mode():
                options = PassOptions(tail=1)
                finish(model.passing(batch, method, None, model.new_cache(), options))
        finally:
            torch.cuda.set_sync_debug_mode("default")
