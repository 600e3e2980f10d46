"""PEFT's ordinary calls: what works with transformers' Mamba works with a ReMamba."""

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

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
