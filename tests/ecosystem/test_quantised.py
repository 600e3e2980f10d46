"""Quantised weights by bitsandbytes and torchao: which, how exactly, and all that reads them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from remamba import CompressionConfig, InputError, Reader, ReMambaForCausalLM, SamplingOptions
from remamba.execution.watch import Watch
from remamba.pretrained import fingerprint
from remamba.quantised import stored
from tests.exactness import BACKBONES, error
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

PLAIN = {"compression": False}
PAPER = CompressionConfig(start=0.1, length=0.5, keep_ratio=0.3)
WHOLE = CompressionConfig(length=1.0, keep_ratio=0.3, adaption="multiplicative")
GROUP = 32
FOUR = SamplingOptions(max_new_tokens=4)


def configurations() -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import BitsAndBytesConfig, TorchAoConfig

    grouped = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))
    return {
        "bnb-4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "bnb-4-twice": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
        "bnb-8": BitsAndBytesConfig(load_in_8bit=True),
        "torchao-8": TorchAoConfig(Int8WeightOnlyConfig()),
        "torchao-4": TorchAoConfig(grouped),
    }


KINDS = ("bnb-4", "bnb-4-twice", "bnb-8", "torchao-8", "torchao-4")
ALWAYS = {("mamba", "bnb-4"), ("mamba2", "torchao-8"), ("falcon_mamba", "bnb-8")}
"""What the default run tries of these; the other pairs are slow together."""
NEVER = ("x_proj", "dt_proj", "query_proj", "key_proj", "value_proj")
SIZES = {"hidden_size": 64, "head_dim": 16}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(2, 300, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory for each backbone, with a tokenizer."""
    found = {}
    for backbone in BACKBONES:
        found[backbone] = tmp_path_factory.mktemp(backbone)
        tiny_model(backbone, **SIZES).save_pretrained(found[backbone])
        tiny_tokenizer().save_pretrained(found[backbone])
    return found


@pytest.fixture(scope="module")
def load(folders):
    """A new model in float32, quantised."""

    def quantised(backbone: str, kind: str, **options: Any) -> ReMambaForCausalLM:
        config = configurations()[kind]
        options = {"dtype": torch.float32, **options}
        return ReMambaForCausalLM.from_pretrained(
            folders[backbone], quantization_config=config, **options
        ).eval()

    return quantised


def is_quantised(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter


def dequantised(model: ReMambaForCausalLM, folder: Any) -> ReMambaForCausalLM:
    """A plain model of the numbers that the quantised weights stand for."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    plain = ReMambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if is_quantised(module):
                weight = module.weight
                if hasattr(weight, "__tensor_flatten__"):
                    numbers = weight.dequantize()
                else:
                    numbers = dequantize_bnb_weight(weight, getattr(module, "state", None))
                plain.get_submodule(name).weight.copy_(numbers)
    return plain


def bytes_of(kind: str, rows: int, columns: int) -> int:
    """What a weight takes: its numbers, a scale for each block, group or row, and tables."""
    numbers = rows * columns
    blocks = -(-numbers // 64)
    return {
        # a float32 for each 64 numbers, 16 values of the table, and a note of its sizes
        "bnb-4": numbers // 2 + 4 * blocks + 4 * 16,
        # a byte for each 64, a float32 for each 256 of those, both tables
        "bnb-4-twice": numbers // 2 + blocks + 4 * -(-blocks // 256) + 4 * 16 + 4 * 256,
        "bnb-8": numbers + 4 * rows + 1,
        # a zero point beside each scale
        "torchao-8": numbers + (4 + 1) * rows,
        # four bits in a byte each: torchao has no packed kind for CPUs; a zero point a group
        "torchao-4": numbers + (4 + 1) * numbers // GROUP,
    }[kind]


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [
        pytest.param(backbone, kind, marks=[] if (backbone, kind) in ALWAYS else pytest.mark.slow)
        for backbone in BACKBONES
        for kind in KINDS
    ],
)
class TestWeights:
    def test_what_is_quantised_and_its_bytes(self, backbone, kind, load, folders):
        model = load(backbone, kind)
        plain = ReMambaForCausalLM.from_pretrained(folders[backbone], dtype=torch.float32)
        tensors = stored(model)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            is_wanted = not any(part in name for part in NEVER)
            assert is_quantised(module) == is_wanted, name
            if not is_wanted:
                continue
            found = sum(
                t.nbytes for n, t in tensors.items()
                if n.startswith(f"{name}.") and "quant_state" not in n
            )  # fmt: skip
            assert found == bytes_of(kind, module.out_features, module.in_features)
        own = dict(model.named_parameters())
        for name, weight in plain.named_parameters():
            if not is_quantised(model.get_submodule(name.rpartition(".")[0])):
                assert torch.equal(own[name], weight), name

    def test_logits_are_those_of_the_dequantised_weights(self, backbone, kind, load, folders):
        model, ids = load(backbone, kind), tokens(2, 40)
        plain = dequantised(model, folders[backbone])
        with torch.no_grad():
            for form in (False, PAPER, WHOLE):
                found, wanted = (m(ids, compression=form) for m in (model, plain))
                if kind == "bnb-8":
                    # it rounds what is multiplied to 8 bits too, 1 part in 254 at most
                    if form is False:
                        assert 0 < error(found.logits, wanted.logits) < 0.05
                else:
                    assert error(found.logits, wanted.logits) < 1e-5
                assert torch.isfinite(found.logits).all()

    def test_all_that_reads_runs(self, backbone, kind, load, folders):
        model, ids = load(backbone, kind), tokens(1, 40)
        before = fingerprint(model)
        assert before != fingerprint(ReMambaForCausalLM.from_pretrained(folders[backbone]))
        new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        memory = model.read(ids, compression=WHOLE)
        asked = {"question_lengths": torch.tensor([5])}
        wanted = model.generate(
            torch.cat([ids, ids[:, :5]], dim=1), compression=WHOLE, **asked, **new
        )
        found = model.generate(ids[:, :5], memory=memory, **new)
        assert torch.equal(found[:, -4:], wanted[:, -4:])
        reader = Reader(model, tiny_tokenizer())
        for method in ("plain", WHOLE):
            answer = reader.read(TEXT).ask("Who?", method=method, options=FOUR)
            assert answer.finish_reason == "length"
        assert fingerprint(model) == before

    def test_saved_and_loaded(self, backbone, kind, load, tmp_path):
        model, ids = load(backbone, kind), tokens(2, 40)
        with torch.no_grad():
            wanted = model(ids).logits
        model.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        again = ReMambaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(again(ids).logits, wanted)
        assert fingerprint(again) == fingerprint(model)
        assert Reader(tmp_path, device="cpu").read(TEXT).ask("Who?", options=FOUR).text

    def test_lora_on_top(self, backbone, kind, load):
        from peft import LoraConfig, get_peft_model

        model, ids = load(backbone, kind), tokens(2, 40)
        with torch.no_grad():
            before = model(ids, **PLAIN).logits
        adapted: Any = get_peft_model(
            model, LoraConfig(r=2, target_modules=["in_proj", "out_proj"])
        )
        adapted.train()
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert all(p.is_floating_point() for p in trained)
        optimizer = torch.optim.SGD(trained, 0.05)
        losses = []
        for _ in range(4):
            loss = adapted(input_ids=ids, labels=ids, prompt_lengths=torch.tensor([20, 20])).loss
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        assert losses == sorted(losses, reverse=True)
        adapted.eval()
        with torch.no_grad(), adapted.disable_adapter():
            torch.testing.assert_close(adapted(input_ids=ids, **PLAIN).logits, before)

    def test_prepared_for_training_in_bfloat16(self, backbone, kind, load):
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(load(backbone, kind, dtype=torch.bfloat16))
        config = LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False
        )
        adapted: Any = get_peft_model(model, config).train()
        ids = tokens(2, 40)
        adapted(input_ids=ids, labels=ids, prompt_lengths=torch.tensor([20, 20])).loss.backward()
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.any() for p in trained)


@pytest.mark.parametrize("kind", ["bnb-4", "bnb-4-twice"])
def test_dequantised_by_transformers(kind, load):
    model, ids = load("mamba", kind), tokens(2, 40)
    with torch.no_grad():
        wanted = model(ids).logits
        assert error(model.dequantize()(ids).logits, wanted) < 1e-5
    assert not any(map(is_quantised, model.modules()))


def test_a_tied_head_stays_the_embeddings(tmp_path):
    tiny_model("mamba", tie_word_embeddings=True, **SIZES).save_pretrained(tmp_path)
    for config in configurations().values():
        model = ReMambaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
        assert model.lm_head.weight is model.backbone.embeddings.weight
        assert not is_quantised(model.lm_head) and is_quantised(
            model.backbone.layers[0].mixer.in_proj
        )


def test_the_callers_own_exceptions_are_kept_and_his_object_left_alone(folders):
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    before = copy.deepcopy(config.to_dict())
    for given in (config, config.to_dict()):
        model = ReMambaForCausalLM.from_pretrained(folders["mamba"], quantization_config=given)
        assert not is_quantised(model.lm_head)
        assert not is_quantised(model.compressor.key_proj[0])
    assert config.to_dict() == before


@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_is_captured_of_quantised_weights(kind, load):
    model = load("mamba", kind)
    watch = Watch(model.backbone, model.lm_head)
    assert not watch.is_known and not watch.is_plain
    assert Watch(tiny_model("mamba").backbone).is_plain


def test_weights_quantised_in_place_are_left_to_their_modules(monkeypatch):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    from remamba.model import layers

    monkeypatch.setattr(layers, "LARGE_WEIGHT", 1)
    model, ids = tiny_model("mamba", **SIZES), tokens(1, 1)
    quantize_(model, Int8WeightOnlyConfig(), lambda m, name: name.endswith("in_proj"))
    plain = tiny_model("mamba", **SIZES)
    with torch.no_grad():
        for ours, theirs in zip(model.backbone.layers, plain.backbone.layers, strict=True):
            theirs.mixer.in_proj.weight.copy_(ours.mixer.in_proj.weight.dequantize())
        assert error(model(ids, **PLAIN).logits, plain(ids, **PLAIN).logits) < 1e-5


class TestRefused:
    def refusal(self, folder: Any, config: Any, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            ReMambaForCausalLM.from_pretrained(folder, quantization_config=config, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_other_libraries(self, folders):
        from transformers import QuantoConfig

        said = self.refusal(folders["mamba"], QuantoConfig(weights="int8"))
        assert "quantised by quanto" in said and "bitsandbytes" in said

    def test_embeddings(self, folders):
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True)
        assert "include_input_output_embeddings" in self.refusal(folders["mamba"], config)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have these kernels")
    @pytest.mark.parametrize("packing", ["plain", "plain_int32", "tile_packed_to_4d"])
    def test_packed_4_bits_of_torchao_on_a_cpu(self, folders, packing):
        from torchao.quantization import Int4WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int4WeightOnlyConfig(group_size=32, int4_packing_format=packing))
        said = self.refusal(folders["mamba"], config, dtype=torch.bfloat16)
        assert "torchao cannot use Int4WeightOnlyConfig with torch.bfloat16 on cpu (" in said

    def test_bitsandbytes_on_disk(self, folders, tmp_path):
        places = {"": "disk"}
        config = configurations()["bnb-4"]
        said = self.refusal(folders["mamba"], config, device_map=places, offload_folder=tmp_path)
        assert "dispatched on the CPU or the disk" in said

    def test_a_directory_in_which_other_modules_are_quantised(self, load, tmp_path):
        load("mamba", "bnb-4").save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        values = json.loads(file.read_text())
        values["quantization_config"]["llm_int8_skip_modules"] = None
        file.write_text(json.dumps(values))
        assert "keep their numbers" in self.refusal(tmp_path, None)

    def test_training_and_merging(self, load, tmp_path, refused, write):
        load("mamba", "bnb-4").save_pretrained(tmp_path / "small")
        tiny_tokenizer().save_pretrained(tmp_path / "small")
        data = write(tmp_path / "rows.jsonl", {"prompt": "Who?", "response": "Tom."})
        places = {"base": str(tmp_path / "plain"), "data": str(data), "output": str(tmp_path)}
        words = [
            "train",
            "--base",
            tmp_path / "small",
            "--data",
            data,
            "--output",
            tmp_path / "out",
        ]
        assert "holds quantised weights" in refused(*words)
        plain = tiny_model("mamba", **SIZES)
        plain.save_pretrained(tmp_path / "plain")
        from remamba.train.config import TrainArgs
        from remamba.train.lora import adapter_config, add_adapters, save_adapter

        args = TrainArgs(**places, parameters="lora")
        adapted = add_adapters(plain, adapter_config(args, "mamba"), with_dt_bias=False)
        save_adapter(adapted, tmp_path / "adapter")
        words = ["merge", tmp_path / "adapter", tmp_path / "merged", "--base", tmp_path / "small"]
        assert "holds quantised weights" in refused(*words)
