"""accelerate's offload: no weight is read past its module's call."""

import pytest
import torch

from remamba import ReMambaForCausalLM
from tests.exactness import BACKBONES, FORMS, tiny_model, tokens


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_on_disk_give_the_whole_models_answers(backbone, tmp_path):
    model, ids = tiny_model(backbone), tokens(2, 20)
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("backbone.embeddings", "backbone.norm_f", "lm_head"), "cpu")
    places |= {"compressor": "disk", "backbone.layers.0": "cpu", "backbone.layers.1": "disk"}
    away = ReMambaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    )
    assert any(parameter.is_meta for parameter in away.parameters())
    with torch.no_grad():
        for form in ("plain", "paper", "exact", "whole"):
            settings = FORMS.get(form, False)
            torch.testing.assert_close(
                away(ids, compression=settings).logits,
                model(ids, compression=settings).logits,
                rtol=1e-5,
                atol=1e-5,
            )
        memory = away.read(ids, compression=FORMS["whole"])
        assert memory.fingerprint == model.read(ids, compression=FORMS["whole"]).fingerprint
        new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(away.generate(ids, **new), model.generate(ids, **new))
