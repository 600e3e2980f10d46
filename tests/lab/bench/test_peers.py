"""The adapters of peers, against stand-ins that compute the same in the peers' own layouts."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.bench import op_cases
from lab.bench.check import relative_error
from lab.bench.passes import run_mamba_ssm
from lab.bench.shapes import SHAPES, build, build_mamba_ssm
from remamba import ops
from remamba.ops import selective_scan_ref, ssd_ref


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """(b, e, l) tensors; B and C (b, n, l)."""
    assert delta_softplus and u.is_contiguous() and B.shape[1] == A.shape[1]
    y, state = selective_scan_ref(
        u.mT, delta.mT, A, B.mT, C.mT, D, z=z.mT, dt_bias=delta_bias
    )  # fmt: skip
    return (y.mT, state) if return_last_state else y.mT


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, dt_bias=None, dt_softplus=False, return_final_states=False
):
    assert dt_softplus and return_final_states
    return ssd_ref(x, dt, A, B, C, D, dt_bias=dt_bias)


def causal_conv1d_fn(x, weight, bias=None, activation=None):
    """(b, e, l)."""
    assert activation == "silu" and x.is_contiguous()
    return ops.causal_conv(x.mT, weight, bias)[0].mT


class MambaLMHeadModel(torch.nn.Module):
    """As far as the benchmark uses it: names of weights, `num_last_tokens`, `generate`."""

    def __init__(self, config: Any, device: Any, dtype: Any):
        super().__init__()
        model = build(SHAPES["mamba-tiny"], "cpu", "float32")
        self.model = [model]
        for name, tensor in model.state_dict().items():
            if not name.startswith("compressor.") and not name.endswith("adaption.theta"):
                path = name.replace("embeddings", "embedding").split(".")
                place: Any = self
                for part in path[:-1]:
                    if not hasattr(place, part):
                        place.add_module(part, torch.nn.Module())
                    place = getattr(place, part)
                place.register_buffer(path[-1], torch.zeros_like(tensor))
        self.generated: list[int] = []

    def generate(self, ids: Tensor, max_length: int, cg: bool, top_k: int) -> None:
        assert cg and top_k == 1
        self.generated.append(max_length - ids.shape[1])


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the peers' names."""

    def add(name: str, **members: Any) -> None:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if path not in sys.modules:
                module = types.ModuleType(path)
                module.__spec__ = ModuleSpec(path, None)
                module.__path__ = []  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, path, module)
        for member, value in members.items():
            monkeypatch.setattr(sys.modules[name], member, value, raising=False)

    add("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=selective_scan_fn)
    add("mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined=mamba_chunk_scan_combined)
    add("mamba_ssm.models.config_mamba", MambaConfig=lambda **sizes: sizes)
    add("mamba_ssm.models.mixer_seq_simple", MambaLMHeadModel=MambaLMHeadModel)
    add("causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)


@pytest.mark.parametrize("op", ["selective_scan", "ssd", "causal_conv"])
def test_a_peer_gets_our_inputs_in_its_layout(op: str, peers: None) -> None:
    shape = SHAPES["mamba2-tiny" if op == "ssd" else "mamba-tiny"]
    inputs = op_cases.make_inputs(op, shape, 2, 37, "cpu", torch.float32, with_state=False)
    ((name, adapt),) = op_cases.peer_forms(op).items()
    assert name == ("causal_conv1d" if op == "causal_conv" else "mamba_ssm")
    given, form = adapt(inputs)
    found = op_cases.as_ours(op, form(given)[0])
    wanted = op_cases.own_form(op, "torch")(inputs)[0]
    assert relative_error(found, wanted) < 1e-5


def test_no_peers_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cases, "find_spec", lambda name: None)
    assert not any(map(op_cases.peer_forms, ("selective_scan", "ssd", "causal_conv", "rms_norm")))


def test_mamba_ssm_takes_our_weights_by_its_names(peers: None) -> None:
    ours = build(SHAPES["mamba-tiny"], "cpu", "float32")
    theirs: Any = build_mamba_ssm(SHAPES["mamba-tiny"], ours)
    weight = theirs.backbone.layers.get_submodule("1").mixer.in_proj.weight
    assert torch.equal(weight, ours.backbone.layers[1].mixer.in_proj.weight)
    assert torch.equal(theirs.backbone.embedding.weight, ours.lm_head.weight)


def test_mamba_ssm_decoding_is_what_is_behind_the_first_token(peers: None) -> None:
    ours = build(SHAPES["mamba-tiny"], "cpu", "float32")
    theirs: Any = build_mamba_ssm(SHAPES["mamba-tiny"], ours)
    sample = run_mamba_ssm(theirs, torch.ones(1, 5, dtype=torch.long), 7)
    assert theirs.generated == [1, 7]
    assert sample.first is not None and sample.first > 0
