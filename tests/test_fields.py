"""Types and ranges of settings: the message names field, value and mend; sizes fit the weights."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from remamba import InputError, ReMambaConfig, ReMambaForCausalLM, ReMambaModel, cli
from remamba.checkpoints.convert import expected_shapes
from remamba.configuration_remamba import FIELDS, MOST_LAYERS
from remamba.engine.sampling import SamplingOptions
from remamba.fields import LARGEST, check_value, shown
from remamba.methods.base import method_of
from remamba.train.config import TrainArgs
from tests.tiny import save_tiny

NAN, HUGE = float("nan"), 10**12


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", [NAN, float("inf"), -1, HUGE, 10**400, [NAN], {"a": 1}, b"x", ()], ids=shown
)
def test_a_setting_of_a_model_that_cannot_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        ReMambaConfig(**{name: value})
    said = str(error.value)
    assert said.startswith(name) and shown(value) in said and "\n" not in said and len(said) < 200


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": "8"}, "hidden_size = '8' must be a whole number"),
        ({"hidden_size": True}, "hidden_size = True must be a whole number"),
        ({"hidden_size": 0}, "hidden_size = 0 must be a whole number of at least 1"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000 must be .* at most 16,777,216"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000 must be .* at most 10,000"),
        ({"vocab_size": None}, "vocab_size = None must be a whole number"),
        ({"expand": 0}, "expand = 0 times hidden_size = 768 must be from 1"),
        ({"expand": LARGEST}, "expand = 16777216 times hidden_size"),
        ({"time_step_rank": "5"}, "time_step_rank = '5' must be a whole number or one of auto"),
        ({"time_step_limit": None}, "time_step_limit = None must be two numbers"),
        ({"time_step_limit": [1]}, r"time_step_limit = \[1\] must be two numbers"),
        ({"time_step_limit": [None, 1]}, r"time_step_limit = \[None, 1\] must be two numbers"),
        ({"time_step_limit": [0, NAN]}, r"time_step_limit = \[0, nan\] must be two numbers"),
        ({"time_step_limit": [2, 1]}, r"time_step_limit = \[2, 1\]: its second number is the low"),
        ({"time_step_min": 0}, "time_step_min = 0 must be above 0"),
        ({"time_step_min": 0.2}, "time_step_min = 0.2 .* at most time_step_max = 0.1"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon = 'x' must be a number"),
        ({"tie_word_embeddings": "x"}, "tie_word_embeddings = 'x' must be true or false"),
        ({"use_bias": 1}, "use_bias = 1 must be true or false"),
        ({"eos_token_id": "x"}, "eos_token_id = 'x' must be"),
        ({"eos_token_id": [0, 50280]}, "eos_token_id = 50280 must be .* at most 50,279"),
        ({"pad_token_id": [1]}, r"pad_token_id = \[1\] must be a whole number or null"),
        ({"question_template": 5}, "question_template = 5 must be a text"),
        ({"method": ""}, "method = '' must be the name of a method"),
        ({"dtype": "float8"}, "dtype = 'float8' must be a kind of float"),
        ({"dtype": "int64"}, "dtype = 'int64' must be a kind of float"),
        ({"num_labels": HUGE}, "num_labels = 1000000000000 must be"),
        ({"architectures": 5}, "architectures = 5 must be a list of a text or null"),
        ({"quantization_config": 5}, "quantization_config = 5 must hold settings by name"),
        ({"compression_config": {}}, "transformers refuses"),
        ({"compression": {"window": True}}, "window = True must be a whole number"),
        ({"compression": {"num_kept": HUGE**9}}, "num_kept = .* at most"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_configuration_is_told(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ReMambaConfig(**values)


def test_what_is_right_is_kept() -> None:
    config = ReMambaConfig(
        eos_token_id=[0, 3], pad_token_id=1, dtype="bfloat16", time_step_rank=7, expand=1.5,
        layer_norm_epsilon=0, time_step_limit=(0.0, float("inf")), num_labels=3, num_heads=0,
        intermediate_size=40, backbone_type="mamba", hidden_size=20, head_dim=64,
    )  # fmt: skip
    again = ReMambaConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict() and again.eos_token_id == [0, 3]
    assert again.dtype is torch.bfloat16 and again.num_labels == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: method_of({"name": "chunks", "tokens": True}), "chunks: tokens = True must be"),
        (lambda: method_of({"name": "chunks", "candidates": "3"}), "candidates = '3' must be a"),
        (lambda: method_of({"name": "bm25", "tokens": None}), "bm25: tokens = None must be a"),
        (lambda: method_of({"name": "bm25", "reader": "x"}), "reader = 'x' must be a Method"),
        (lambda: method_of({"name": "remamba", "compression": []}), "must hold settings by name"),
        (lambda: method_of({"name": "drop", "start": NAN}), "start = nan must be a finite number"),
        (lambda: method_of({"name": ["plain"]}), "is no method"),
        (lambda: method_of("+".join(["last"] * 6)), "shortens more than 4 times"),
        (lambda: SamplingOptions(top_k=1.5), "top_k = 1.5 must be a whole number"),  # type: ignore
        (lambda: SamplingOptions(stop=5), "stop = 5 must be texts"),  # type: ignore
        (lambda: SamplingOptions(stop_token_ids=("a",)), "whole numbers"),  # type: ignore
        (lambda: SamplingOptions(temperature=NAN), "temperature = nan must be a finite number"),
        (lambda: TrainArgs(base="b", data="d", output=5), "--output = 5 must be a text"),
        (lambda: TrainArgs(base="b", data=[5], output="o"), r"--data = \[5\] must be a list"),
        (lambda: TrainArgs(recipe=[]), r"--recipe = \[\] must be one of"),
        (lambda: TrainArgs(base="b", data="d", output="o", length=(0.1,)), "--length = "),
        (lambda: TrainArgs(base="b", data="d", output="o", seed=True), "--seed = True must be"),
        (lambda: check_value("x", 10**5000, int), "x = an integer of 16,610 bits must be a whole"),
    ],
    ids=range(18),
)
def test_options_of_another_type_are_told(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sizes") / "model")


def changed(saved: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model whose config.json says something else."""
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).symlink_to(file)
    config = target / "config.json"
    values = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**values, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 10**9}, "hidden_size = 1000000000 must be"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000 must be"),
        ({"num_hidden_layers": MOST_LAYERS}, r"missing tensors: backbone.layers.2.\*, since its"),
        ({"num_hidden_layers": 1}, r"unexpected tensors: backbone.layers.1.\*, since its weights"),
        ({"vocab_size": LARGEST}, r"mismatched tensors: backbone.embeddings.weight is \(340, 24\)"),
        ({"hidden_size": 2**20, "intermediate_size": 2**21, "num_heads": 2**17, "head_dim": 16},
         "mismatched tensors"),
        ({"intermediate_size": LARGEST, "num_heads": LARGEST, "head_dim": 1,
          "hidden_size": LARGEST, "state_size": LARGEST, "n_groups": LARGEST}, "too large"),
        ({"method": "nosuch"}, "'nosuch' is no method"),
        ({"time_step_limit": None}, "config.json: time_step_limit = None"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", [ReMambaForCausalLM, ReMambaModel])
def test_sizes_are_compared_with_the_weights_before_memory_is_taken(
    kind: Any, changes: dict[str, Any], said: str, saved: Path, tmp_path: Path
) -> None:
    model = changed(saved, tmp_path / "model", **changes)
    with pytest.raises(InputError, match="holds no config"):
        kind.from_pretrained(tmp_path)  # what is imported late is there now
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with pytest.raises(InputError, match=said) as error:
        kind.from_pretrained(model)
    assert "\n" not in str(error.value) and str(model) in str(error.value)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 2**14, "kilobytes"
    assert time.perf_counter() - begun < 2
    words = ["generate", "--model", str(model), "--prompt", "Tom", "--device", "cpu"]
    assert cli.main(words) == 2


def test_weights_in_several_files_are_looked_at_too(saved: Path, tmp_path: Path) -> None:
    model = changed(saved, tmp_path / "model", vocab_size=400)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, model / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    place = model / "model.safetensors.index.json"
    place.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(InputError, match=r"mismatched tensors: backbone\.embeddings\.weight"):
        ReMambaForCausalLM.from_pretrained(model)
    for wrong in ([], {"weight_map": 5}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../b"}}):
        place.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="is no index of weights"):
            ReMambaForCausalLM.from_pretrained(model)


def test_many_layers_take_no_time() -> None:
    begun = time.perf_counter()
    config = ReMambaConfig(hidden_size=16, num_hidden_layers=MOST_LAYERS, vocab_size=9)
    shapes = expected_shapes(config)
    assert len({name.split(".")[2] for name in shapes if ".layers." in name}) == MOST_LAYERS
    assert time.perf_counter() - begun < 3
