"""Initial values of the new parameters, shards, names and the fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from remamba import ReMambaConfig, ReMambaForCausalLM
from remamba.checkpoints.convert import (
    IN_PROJ,
    OUT_PROJ,
    expected_shapes,
    initial_compressor,
    is_new,
    write_shards,
)
from remamba.checkpoints.layouts import our_name
from remamba.errors import InputError

SIZES = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, "head_dim": 4}
BACKBONES = ["mamba", "mamba2", "falcon_mamba"]


def model(backbone: str = "mamba", **changes) -> ReMambaForCausalLM:
    return ReMambaForCausalLM(ReMambaConfig(backbone_type=backbone, **{**SIZES, **changes}))


@pytest.fixture
def sources() -> tuple[Tensor, Tensor]:
    """in_proj (4d, d) and out_proj (d, 2d) with d = 3, every number another."""
    return torch.arange(36.0).view(12, 3), 100 + torch.arange(18.0).view(3, 6)


def test_released_values(sources: tuple[Tensor, Tensor]) -> None:
    in_proj, out_proj = sources
    values = initial_compressor(in_proj, out_proj, "released")
    expected = {
        "key_proj.0": in_proj[0:3], "key_proj.2": in_proj[3:6],
        "query_proj.0": in_proj[6:9], "query_proj.2": in_proj[9:12],
        "value_proj.0": out_proj[:, 0:3], "value_proj.2": out_proj[:, 3:6],
    }  # fmt: skip
    for name, weight in expected.items():
        assert torch.equal(values[f"compressor.{name}.weight"], weight)
        assert torch.equal(values[f"compressor.{name}.bias"], torch.zeros(3))
    assert len(values) == 12


def test_paper_takes_all_from_in_proj(sources: tuple[Tensor, Tensor]) -> None:
    in_proj, out_proj = sources
    values = initial_compressor(in_proj, out_proj, "paper")
    released = initial_compressor(in_proj, out_proj, "released")
    for name, value in values.items():
        if "value_proj" not in name:
            assert torch.equal(value, released[name])
    assert torch.equal(values["compressor.value_proj.0.weight"], in_proj[0:3])
    assert torch.equal(values["compressor.value_proj.2.weight"], in_proj[3:6])


def test_tied_query_is_a_copy_of_key(sources: tuple[Tensor, Tensor]) -> None:
    values = initial_compressor(*sources, "tied", seed=7)
    for name in (f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")):
        key, query = values[f"compressor.key_proj.{name}"], values[f"compressor.query_proj.{name}"]
        assert torch.equal(key, query) and key.data_ptr() != query.data_ptr()
        assert key.abs().max() <= 3**-0.5 and key.std() > 0
        assert not torch.equal(key, values[f"compressor.value_proj.{name}"])


@pytest.mark.parametrize("preset", ["released", "paper", "tied"])
def test_values_are_copies(preset: str, sources: tuple[Tensor, Tensor]) -> None:
    values = list(initial_compressor(*sources, preset).values())
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*values, *sources)}
    assert len(storages) == len(values) + 2
    assert all(value.is_contiguous() and value.dtype == torch.float32 for value in values)


@pytest.mark.parametrize(
    ("rows", "columns", "preset", "expected"),
    [
        (11, 6, "released", r"needs 12 rows .* has 11; use compressor_init='tied'"),
        (11, 6, "paper", r"needs 12 rows .* has 11; use compressor_init='tied'"),
        (12, 5, "released", r"needs 6 columns .* has 5; use compressor_init='tied'"),
        (12, 6, "zeros", r"'zeros' is unknown"),
    ],
)
def test_narrow_sources(rows: int, columns: int, preset: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        initial_compressor(torch.zeros(rows, 3), torch.zeros(3, columns), preset)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_values_fit_a_live_model(backbone: str) -> None:
    live = model(backbone)
    parameters = dict(live.named_parameters())
    in_proj = parameters[IN_PROJ]
    values = initial_compressor(in_proj, parameters[OUT_PROJ], "released")
    assert live.load_state_dict(values, strict=False).unexpected_keys == []
    assert torch.equal(live.compressor.query_proj[2].weight, in_proj[24:32])
    assert not live.compressor.value_proj[0].bias.any()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_expected_shapes_are_the_models(backbone: str, tied: bool) -> None:
    live = model(backbone, tie_word_embeddings=tied)
    shapes = expected_shapes(live.config)
    assert shapes == {name: parameter.shape for name, parameter in live.named_parameters()}
    assert sum(map(is_new, shapes)) == 12 + 2


@pytest.mark.parametrize("prefix", ["", "module."])
def test_new_parameters_by_name(prefix: str) -> None:
    """Under a wrapper's prefix too; a backbone's parameter is never new."""
    names = (n for n, _ in model().named_parameters())
    new = {n for n in names if is_new(prefix + n)}
    assert len(new) == 12 + 2
    assert all("compressor" in n or n.endswith("theta") for n in new)


@pytest.mark.parametrize(
    "name",
    ["backbone.embedding.weight", "backbone.embeddings.weight", "embeddings.weight"],
)
def test_names_of_the_embeddings(name: str) -> None:
    assert our_name(name) == "backbone.embeddings.weight"


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (100, 3), (1, 5)])
def test_shards(limit: int, files: int, tmp_path: Path) -> None:
    """No shard passes the limit unless one tensor alone does; every tensor is in the index."""
    tensors = {name: torch.full((12,), float(i)) for i, name in enumerate("abcde")}
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    assert write_shards(tmp_path, sizes, tensors.__getitem__, limit) == files
    paths = sorted(tmp_path.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            found |= {name: file.get_tensor(name) for name in names}
        assert len(names) == 1 or sum(sizes[name] for name in names) <= limit
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        stored = json.loads(index.read_text())
        assert stored["metadata"]["total_size"] == sum(sizes.values())
        assert set(stored["weight_map"].values()) == {path.name for path in paths}
