"""PEFT's ordinary calls: what works with transformers' Mamba works with a ReMamba."""

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from remamba import InputError, ReMambaForCausalLM
from tests.exactness import BACKBONES, tiny_model, tokens

PLAIN = {"compression": False}


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_lora_trains_saves_loads_and_merges(backbone, task_type, tmp_path):
    ids = tokens(2, 30)
    wanted = tiny_model(backbone)(ids, labels=ids, **PLAIN).loss
    config = LoraConfig(task_type=task_type, target_modules=["in_proj", "out_proj"], r=2)
    model = get_peft_model(tiny_model(backbone), config)
    torch.testing.assert_close(model(input_ids=ids, labels=ids, **PLAIN).loss, wanted)
    model.train()
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                assert parameter.grad is not None
                parameter.add_(0.1 * torch.sign(parameter.grad))
    model.eval()
    adapted = model(input_ids=ids, **PLAIN).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(backbone), tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids, **PLAIN).logits, adapted)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids, **PLAIN).logits, adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_soft_prompt_equals_its_embeddings_in_front(backbone):
    model = tiny_model(backbone)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned, ids = get_peft_model(model, config).eval(), tokens(2, 9)
    prompt = tuned.get_prompt(batch_size=2)
    embeds = torch.cat([prompt, model.get_input_embeddings()(ids)], dim=1)
    wanted = model(inputs_embeds=embeds, **PLAIN).logits
    found = tuned(input_ids=ids, attention_mask=torch.ones_like(ids), **PLAIN).logits
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("backbone", "extra"),
    [
        pytest.param(
            backbone, extra,
            marks=[] if backbone == "mamba" or extra == "compressor" else pytest.mark.slow,
        )
        for backbone in BACKBONES
        for extra in ("nothing", "compressor", "dora", "everything")
    ],
)  # fmt: skip
def test_all_that_is_trained_gets_a_gradient_and_comes_back(backbone, extra, tmp_path):
    ids = tokens(2, 30)
    options = {
        "nothing": {"target_modules": "all-linear"},
        "compressor": {"target_modules": "all-linear", "modules_to_save": ["compressor"]},
        "dora": {"target_modules": ["in_proj", "out_proj"], "use_dora": True},
        "everything": {
            "target_modules": ["in_proj", "lm_head", "embeddings"],
            "modules_to_save": ["adaption", "conv1d"],
        },
    }[extra]
    settings = {"start": 0.1, "length": 0.5, "keep_ratio": 0.3}
    base = tiny_model(backbone, tie_word_embeddings=False, compression=settings)
    base.save_pretrained(tmp_path / "base")
    plain = base(ids).logits
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, **options)).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if extra == "nothing":
        adapted = {name.split(".lora_")[0] for name in trained}
        linear = {
            name for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and "lora" not in name and "lm_head" not in name
        }  # fmt: skip
        assert {f"{name}.base_layer" for name in adapted} == linear
    optimizer = torch.optim.SGD(trained.values(), 1e-2)
    prompts = torch.tensor([20, 20])
    for _ in range(2):  # lora_A has no gradient before lora_B has moved from zero
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, prompt_lengths=prompts).loss.backward()
        optimizer.step()
    idle = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert not idle
    model.eval()
    wanted = model(input_ids=ids).logits
    assert not torch.allclose(wanted, plain)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, plain)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        ReMambaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, wanted)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    whole = ReMambaForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole(ids).logits, merged(ids).logits)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig])
def test_a_soft_prompt_trains_saves_and_generates(kind, tmp_path):
    ids = tokens(2, 9)
    model = get_peft_model(
        tiny_model("mamba"), kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).train()
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    model.eval()
    model.save_pretrained(tmp_path)
    new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "compression": False}
    wanted = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **new)
    again = PeftModel.from_pretrained(tiny_model("mamba"), tmp_path)
    found = again.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **new)
    assert torch.equal(found, wanted)
    whole = torch.cat([model.get_prompt(2), model.word_embeddings(ids)], dim=1)
    right = tiny_model("mamba").generate(inputs_embeds=whole, **new)
    assert torch.equal(wanted[:, -4:], right[:, -4:])


def test_prefix_tuning_is_refused():
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, ids = get_peft_model(tiny_model("mamba"), config), tokens(2, 9)
    with pytest.raises(InputError, match="prefix tuning"):
        model(input_ids=ids, labels=ids)
