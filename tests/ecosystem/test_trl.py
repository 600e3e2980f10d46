"""TRL's trainers: what trains transformers' Mamba trains a ReMamba that reads plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remamba import InputError, ReMambaForCausalLM
from tests.exactness import BACKBONES
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")

STEPS = {
    "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 3, "save_strategy": "no",
    "per_device_train_batch_size": 2, "logging_steps": 1, "lr_scheduler_type": "constant",
    "learning_rate": 2e-2, "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip
SENTENCES = [line + "." for line in TEXT.split(". ")] * 4


def rows(**columns: list[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def sft(model: ReMambaForCausalLM | str, folder: Any, peft: Any = None, **options: Any) -> Any:
    options = {**STEPS, "max_length": 32, "output_dir": str(folder), **options}
    return trl.SFTTrainer(
        model=model,
        processing_class=tiny_tokenizer(),
        args=trl.SFTConfig(**options),
        train_dataset=rows(text=[TEXT] * 8),
        peft_config=peft,
    )


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", target_modules=["in_proj", "out_proj"], r=4)


@pytest.mark.parametrize(
    ("backbone", "adapted", "checkpointing"),
    [
        ("mamba", True, True),
        ("mamba2", False, False),
        ("falcon_mamba", True, False),
        pytest.param("mamba", False, True, marks=pytest.mark.slow),
        pytest.param("mamba2", True, True, marks=pytest.mark.slow),
        pytest.param("falcon_mamba", False, True, marks=pytest.mark.slow),
    ],
)
def test_sft_learns(backbone, adapted, checkpointing, tmp_path):
    model = tiny_model(backbone, method="plain")
    ids = torch.tensor([tiny_tokenizer()(TEXT).input_ids[:32]])
    first = model(ids, labels=ids).loss.item()
    options = {"gradient_checkpointing": checkpointing}
    found = losses(sft(model, tmp_path, lora() if adapted else None, **options))
    assert found[0] == pytest.approx(first, rel=1e-4)
    assert found == sorted(found, reverse=True)


def test_a_model_by_its_directory(tmp_path):
    tiny_model("mamba", method="plain").save_pretrained(tmp_path / "model")
    assert losses(sft(str(tmp_path / "model"), tmp_path / "run"))


def test_padded_rows_are_scored_one_by_one(tmp_path):
    model = tiny_model("mamba", method="plain")
    trainer = sft(model, tmp_path)
    ids = torch.randint(2, 300, (2, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
    labels = ids.masked_fill(mask == 0, -100)
    wanted = model(ids, attention_mask=mask, labels=labels).loss
    out = trainer.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(out.loss, wanted)


@pytest.mark.parametrize("adapted", [False, True])
def test_dpo_takes_a_step(adapted, tmp_path):
    tiny_model("mamba", method="plain").save_pretrained(tmp_path / "model")
    # from its directory, so that TRL can load the model it is compared with
    model = ReMambaForCausalLM.from_pretrained(tmp_path / "model")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {**STEPS, "max_steps": 2, "learning_rate": 1e-3, "output_dir": str(tmp_path)}
    reversed_words = [" ".join(reversed(text.split())) for text in SENTENCES]
    trainer = trl.DPOTrainer(
        model=model,
        processing_class=tiny_tokenizer(),
        args=trl.DPOConfig(**options, max_length=48),
        train_dataset=rows(
            prompt=["Who?"] * len(SENTENCES), chosen=SENTENCES, rejected=reversed_words
        ),
        peft_config=lora() if adapted else None,
    )
    found = losses(trainer)
    assert found[0] == pytest.approx(0.6931, abs=1e-3)  # nothing is preferred yet: log 2
    assert all(loss < 10 for loss in found)
    trained = dict(trainer.model.named_parameters())
    if adapted:
        assert all(p.any() for name, p in trained.items() if "lora_B" in name)
    else:
        assert any(not torch.equal(p, before[name]) for name, p in trained.items())


class TestRefused:
    @pytest.mark.parametrize(
        "options", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=list
    )
    def test_packing(self, options, tmp_path):
        trainer = sft(tiny_model("mamba", method="plain"), tmp_path, **options)
        with pytest.raises(InputError, match="packing=False and padding_free=False"):
            trainer.train()

    def test_two_stages(self, tmp_path):
        trainer = sft(tiny_model("mamba"), tmp_path)
        with pytest.raises(InputError, match=r"model.config.method = 'plain'"):
            trainer.train()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_model_below_the_head(backbone):
    model, ids = tiny_model(backbone, method="plain"), torch.randint(2, 300, (2, 20))
    trunk = model.base_model
    states = trunk(ids).last_hidden_state
    torch.testing.assert_close(model.lm_head(states), model(ids).logits)
    assert {name for name, _ in trunk.named_parameters()} == {
        name for name, _ in model.named_parameters() if not name.startswith("lm_head")
    }
    assert trunk.backbone is model.backbone
    assert trunk.base_model is trunk


def quantised(folder: Any, kind: str, skipped: list[str] | None = None) -> ReMambaForCausalLM:
    """A model in bfloat16, its weights in 4 or 8 bits by bitsandbytes, or in 8 by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao":
        config: Any = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    else:
        config = BitsAndBytesConfig(**{f"load_in_{kind}": True}, llm_int8_skip_modules=skipped)
    return ReMambaForCausalLM.from_pretrained(folder, quantization_config=config)


@pytest.mark.parametrize("kind", ["4bit", "8bit", "torchao"])
def test_sft_on_quantised_weights(kind, tmp_path):
    tiny_model("mamba", method="plain", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    model = quantised(tmp_path, kind, ["lm_head"])
    found = losses(sft(model, tmp_path / "run", lora()))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("kind", ["4bit", "8bit", "torchao"])
def test_a_quantised_head_is_refused_because_trl_reads_its_weight(kind, tmp_path):
    tiny_model("mamba", method="plain", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    trainer = sft(quantised(tmp_path, kind), tmp_path / "run", lora())
    with pytest.raises(InputError, match="the head is quantised"):
        trainer.train()
