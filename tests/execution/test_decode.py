"""A decode step in place equals the modules: fused or not, in rows of any number, bound or not."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remamba import InputError, ReMambaConfig, ReMambaForCausalLM, StateCache
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.execution import decode as decode_module
from remamba.execution.decode import DecodeStep, decode_step_of
from remamba.ops import use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 10,
    "num_hidden_layers": 2,
    "state_size": 6,
    "head_dim": 5,
    "n_groups": 2,
    "layer_norm_epsilon": 1e-3,
    "eos_token_id": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba2-g2": {"backbone_type": "mamba2"},
    "mamba2-g1": {
        "backbone_type": "mamba2",
        "n_groups": 1,
        "time_step_limit": (0.01, 0.5),
        "use_bias": True,
        "conv_kernel": 2,
        "use_conv_bias": False,
    },
    "falcon": {"backbone_type": "falcon_mamba"},
    "mamba-bias": {
        "use_bias": True,
        "conv_kernel": 3,
        "residual_in_fp32": False,
        "tie_word_embeddings": False,
    },
}


def model_of(name: str) -> Any:
    torch.manual_seed(3)
    model = ReMambaForCausalLM(ReMambaConfig(**{**SIZES, **MODELS[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for block in model.backbone.layers:
            block.mixer.out_proj.weight.mul_(6)
    return model.to(DEVICE)


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 19, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@torch.no_grad()
def read(model: Any, ids: Tensor) -> StateCache:
    cache = model.new_cache()
    model(ids, cache_params=cache, compression=False)
    return cache


def same_states(found: StateCache, expected: StateCache, assert_close: Any) -> None:
    assert found.batch_size == expected.batch_size
    for name in ("conv_states", "ssm_states"):
        for state, wanted in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert_close(state, wanted)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's forward runs the step in place, on a CPU too."""
    monkeypatch.setattr(decode_module, "runs_in_place", lambda model, rows=1: True)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("backend", ["torch", "c", "triton"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forced_tokens_equal_the_parallel_forward(
    name: str, backend: str, rows: int, assert_close: Any, poisoned_memory: None
) -> None:
    steps = 1 if backend == "triton" else 3  # the interpreter is slow; the states tell the rest
    model, ids = model_of(name), tokens_of(rows, 5 + steps)
    with use_backend("torch"):
        expected, final = model(ids, compression=False).logits, read(model, ids)
        step, cache = DecodeStep(model), read(model, ids[:, :5])
    with use_backend(backend):
        found = [step.logits(ids[:, 5 + i], cache) for i in range(steps)]
        assert step.is_fused == (backend != "torch")
    assert_close(torch.stack(found, dim=1), expected[:, 5:])
    same_states(cache, final, assert_close)


@pytest.mark.parametrize("name", ["mamba", "mamba2-g2"])
@pytest.mark.parametrize(
    "dtype",
    # the interpreter cuts bfloat16 off where a GPU rounds
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
    ids=str,
)
@torch.no_grad()
def test_narrow_dtypes_round_no_worse_than_the_modules(name: str, dtype: torch.dtype) -> None:
    """Against float32 with the same weights, from the same states."""
    model, ids = model_of(name).to(dtype), tokens_of(7, 7)
    with use_backend("torch"):
        cache = read(model, ids[:, :6])
    wide = cache._map(lambda state: state.float())
    logits = {}
    for backend in ("torch", "triton"):
        with use_backend(backend):
            logits[backend] = DecodeStep(model).logits(ids[:, 6], cache.clone())
            assert logits[backend].dtype == dtype
    with use_backend("torch"):
        exact = DecodeStep(model.float()).logits(ids[:, 6], wide)
    error = {backend: (found.float() - exact).square().mean() for backend, found in logits.items()}
    assert 0 < error["triton"] < 2 * error["torch"]


@torch.no_grad()
def test_nan_in_one_row_stays_there() -> None:
    """And is not hidden by a softplus, a limit or a mask."""
    for name in ("mamba", "mamba2-g1"):
        model = model_of(name)
        cache = read(model, tokens_of(2, 5))
        for state in cache.conv_states:
            state[0] = torch.nan
        with use_backend("triton"):
            logits = DecodeStep(model).logits(tokens_of(2), cache)
        assert logits[0].isnan().all() and logits[1].isfinite().all()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("name", ["mamba", "mamba2-g2"])
def test_generate_in_place_equals_generate(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, assert_close: Any
) -> None:
    model, ids = model_of(name), tokens_of(2, 9)
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    if "num_return_sequences" in options:
        greedy |= {"num_beams": 2}
    settings = greedy | options | {"output_scores": True, "return_dict_in_generate": True}
    results = []
    for here in (False, True):
        monkeypatch.setattr(decode_module, "runs_in_place", lambda *_, here=here: here)
        results.append(model.generate(ids, **settings))
    expected, found = results
    assert found.sequences.tolist() == expected.sequences.tolist()
    for score, wanted in zip(found.scores, expected.scores, strict=True):
        assert_close(score, wanted)
    if not options:
        same_states(found.cache_params, expected.cache_params, assert_close)


@torch.no_grad()
def test_a_bound_cache_is_its_own(in_place: None, tmp_path: Path, assert_close: Any) -> None:
    """What was taken from a cache never changes, whoever decodes on, and it goes on rightly."""
    model, ids, other_ids = model_of("mamba"), tokens_of(2, 9), tokens_of(3, 9, seed=1)
    step = decode_step_of(model)
    at = {n: read(model, ids[:, :n]) for n in (6, 7, 8, 9)}
    others = {n: read(model, other_ids[:, :n]) for n in (6, 7, 8)}
    cache, other = at[6].clone(), others[6].clone()

    def go(cache: StateCache, column: Tensor) -> None:
        model(column.unsqueeze(1), cache_params=cache)
        assert cache.is_at(step)

    go(cache, ids[:, 6])
    assert cache.is_filled and cache.batch_size == 2 and cache.is_at(step)
    cache.save(tmp_path / "state.safetensors")
    taken = {
        "clone": cache.clone(),
        "select": cache.select(torch.tensor([0, 1])),
        "to": cache.to(DEVICE),
        "copy": cache.copy(),
        "deepcopy": copy.deepcopy(cache),
        "file": StateCache.load(tmp_path / "state.safetensors").to(DEVICE),
    }
    looked_at = cache.ssm_states[1]
    go(cache, ids[:, 7])
    go(other, other_ids[:, 6])  # more rows: the places are made anew
    same_states(cache, at[8], assert_close)
    go(cache, ids[:, 8])
    go(other, other_ids[:, 7])
    for name, early in taken.items():
        try:
            same_states(early, at[7], assert_close)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert_close(looked_at, at[7].ssm_states[1])
    same_states(cache, at[9], assert_close)
    same_states(other, others[8], assert_close)
    # the way by the prompt's forward goes on from a bound cache too, and back
    go(taken["clone"], ids[:, 7])
    model(ids[:, 8:], cache_params=taken["clone"], attention_mask=torch.ones_like(ids[:, 8:]))
    same_states(taken["clone"], at[9], assert_close)
    go(taken["to"], ids[:, 7])
    taken["to"].reset()
    assert not taken["to"].is_filled and taken["to"].batch_size == 0


@torch.no_grad()
def test_what_cannot_be_decoded_in_place_is_refused_as_ever(in_place: None) -> None:
    model = model_of("mamba")
    cache = read(model, tokens_of(2, 5))
    with pytest.raises(InputError, match="2 rows, the input 3"):
        model(tokens_of(3, 1), cache_params=cache)
    with pytest.raises(InputError, match="outside the vocabulary"):
        model(torch.tensor([[1], [19]], device=DEVICE), cache_params=cache)


class Doubled(nn.Module):
    """Stands for an adapter: a projection whose weight is not all that it does."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


@torch.no_grad()
def test_modules_that_do_more_than_their_weights_are_called(
    in_place: None, assert_close: Any
) -> None:
    model, ids = model_of("mamba2-g2"), tokens_of(2, 7)
    cache = read(model, ids[:, :6])
    with use_backend("triton"):
        model(ids[:, 6:], cache_params=cache.clone())
        assert decode_step_of(model).is_fused
        mixer = model.backbone.layers[1].mixer
        mixer.in_proj = Doubled(mixer.in_proj)
        found = model(ids[:, 6:], cache_params=cache.clone()).logits
        assert not decode_step_of(model).is_fused
        mixer.in_proj = mixer.in_proj.inner
        seen: list[int] = []
        hook = mixer.in_proj.register_forward_hook(lambda *_: seen.append(1))
        hooked = cache.clone()
        for i in range(2):
            model(ids[:, i : i + 1], cache_params=hooked)
        hook.remove()
        mixer.in_proj.forward = lambda x: [
            seen.append(1),
            type(mixer.in_proj).forward(mixer.in_proj, x),
        ][1]
        model(ids[:, 6:], cache_params=cache.clone())
        del mixer.in_proj.forward
    assert len(seen) == 3
    mixer.in_proj.weight.mul_(2)
    with use_backend("torch"):
        # the states before it were read by the plain model, as above
        step = DecodeStep(model)
        assert_close(found[:, 0], step.logits(ids[:, 6], cache))


@torch.no_grad()
def test_changed_weights_count(in_place: None) -> None:
    """Whether they are changed where they lie, replaced, or another dtype's."""
    model, ids = model_of("mamba"), tokens_of(1, 7)
    cache = read(model, ids[:, :6])
    step = decode_step_of(model)

    def logits() -> Tensor:
        return model(ids[:, 6:], cache_params=cache.clone()).logits

    first, watch = logits(), step._watch
    model.backbone.norm_f.weight.mul_(2)
    torch.testing.assert_close(logits(), 2 * first)
    assert step._watch is watch
    model.backbone.norm_f.weight = nn.Parameter(model.backbone.norm_f.weight / 2)
    torch.testing.assert_close(logits(), first)
    assert step._watch is not watch


@torch.no_grad()
def test_the_step_goes_with_its_model(in_place: None) -> None:
    model, ids = model_of("mamba"), tokens_of(1, 7)
    cache = read(model, ids[:, :6])
    model(ids[:, 6:], cache_params=cache)
    twin = copy.deepcopy(model)
    assert decode_step_of(twin) is not decode_step_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and cache.batch_size == 1
    same = read(twin, ids)
    torch.testing.assert_close(cache.ssm_states[1], same.ssm_states[1])


class FakeGraph:
    """What a Graph is to its users, without a GPU: warmed up, and of static outputs."""

    made: list[FakeGraph] = []

    def __init__(self, function: Any, pool: Any = None):
        self.function = function
        self.pool = object() if pool is None else pool
        for _ in range(2):
            self.outputs = function()
        FakeGraph.made.append(self)

    def __call__(self) -> Any:
        held, new = self.outputs, self.function()
        if isinstance(held, Tensor):
            return held.copy_(new)
        for place, value in zip(held, new, strict=True):
            if place is not None:
                place.copy_(value)
        return held


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Steps are captured, as on a GPU; the list of their graphs."""
    if DEVICE == "cpu":
        monkeypatch.setattr(decode_module, "Graph", FakeGraph)
        monkeypatch.setattr(DecodeStep, "is_captured", True)
    monkeypatch.setattr(FakeGraph, "made", [])
    return FakeGraph.made


@torch.no_grad()
def test_a_captured_step_moves_states_on_once(captured: list[FakeGraph], assert_close: Any) -> None:
    """Its warm-up leaves no trace; graphs are made once for each bucket, in one pool."""
    model = model_of("mamba")
    step = DecodeStep(model, 8)
    for rows in (3, 4, 1, 2, 3):
        ids = tokens_of(rows, 8, seed=rows)
        cache = read(model, ids[:, :5])
        found = [step.logits(ids[:, i], cache) for i in (5, 6, 7)]
        expected = model(ids, compression=False).logits[:, 5:]
        assert_close(torch.stack(found, dim=1), expected)
        same_states(cache, read(model, ids), assert_close)
    assert sorted(key[0] for key in step._graphs) == [1, 2, 4]
    if captured:
        assert len(captured) == 3 and len({id(graph.pool) for graph in captured}) == 1
        model.backbone.norm_f.weight = nn.Parameter(model.backbone.norm_f.weight * 2)
        cache = read(model, ids[:, :5])
        assert_close(step.logits(ids[:, 5], cache), 2 * expected[:, 0])
        assert len(captured) == 4
        with use_backend("ref"):
            step.logits(ids[:, 6], cache)
            assert not step.is_fused
        assert len(captured) == 5


def test_an_engine_of_captured_steps(captured: list[FakeGraph]) -> None:
    """Greedy and drawn, ends and refilled slots: as without."""
    model = model_of("mamba2-g2")
    requests = [
        Request(
            prompt=tokens_of(3 + i, seed=i).tolist(),
            options=SamplingOptions(
                max_new_tokens=2 + 3 * (i % 3),
                temperature=0.8 * (i % 2),
                seed=i,
                top_k=5,
                logprobs=(None, 3, 20)[i % 3],
            ),
        )
        for i in range(7)
    ]
    expected = Engine(model, slots=3, static=False).run(requests)
    found = Engine(model, slots=3, static=True).run(requests)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        for told, same in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert told.token_id == same.token_id
            assert told.logprob == pytest.approx(same.logprob, rel=1e-5, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_graph_equals_eager(name: str, dtype: torch.dtype, backend: str) -> None:
    """Row counts within and across buckets, to the bit: the same kernels run."""
    model = model_of(name).to(dtype)
    for rows in (1, 2, 3, 5, 20, 64, 70):
        ids = tokens_of(rows, 8)
        with use_backend(backend):
            cache = read(model, ids[:, :6])
            graph, eager = DecodeStep(model, 100), DecodeStep(model, 100)
            twin = cache.clone()
            for i in (6, 7):
                found = graph.logits(ids[:, i], cache)
                eager.bind(twin)
                eager.tokens[:rows] = ids[:, i]
                bucket = next((n for n in decode_module.BUCKETS if n >= rows), 100)
                expected = eager._logits(bucket)[:rows]
                assert torch.equal(found, expected)
            assert graph._graphs and not eager._graphs
            for state, wanted in zip(cache.ssm_states, twin.ssm_states, strict=True):
                assert torch.equal(state, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["mamba", "mamba2-g2"])
def test_a_model_on_another_gpu_than_the_current_one(name: str) -> None:
    """Kernels, graphs and the engine's waits go to the model's GPU."""
    requests = [Request(prompt=tokens_of(n).tolist()) for n in (9, 30)]
    found = []
    for device in ("cuda:0", "cuda:1"):
        engine = Engine(model_of(name).to(device), slots=2)
        for _ in range(3):  # eagerly, captured, replayed
            found.append([done.token_ids for done in engine.run(requests)])
    assert found == found[:1] * 6
