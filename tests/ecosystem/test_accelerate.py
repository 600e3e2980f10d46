"""accelerate's places for weights: none is read past its module's call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import (
    cpu_offload,
    disk_offload,
    dispatch_model,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)

from remamba import Reader, ReMambaConfig, ReMambaForCausalLM, SamplingOptions
from tests.exactness import BACKBONES, FORMS, tiny_model, tokens
from tests.tiny import TEXT, tiny_tokenizer
from tests.tiny import tiny_model as speaking_model

PLACES = {
    "backbone.embeddings": "cpu",
    "backbone.norm_f": "cpu",
    "lm_head": "cpu",
    "compressor": "disk",
    "backbone.layers.0": "cpu",
    "backbone.layers.1": "disk",
}


def saved(backbone: str, folder: Path) -> ReMambaForCausalLM:
    model = tiny_model(backbone)
    model.save_pretrained(folder / "model")
    return model


def empty(folder: Path) -> Any:
    with init_empty_weights():
        model: Any = ReMambaForCausalLM(ReMambaConfig.from_pretrained(folder / "model"))
    model.tie_weights()
    return model.eval()


def auto(whole: ReMambaForCausalLM, folder: Path) -> Any:
    return ReMambaForCausalLM.from_pretrained(folder / "model", device_map="auto")


def auto_with_little_memory(whole: ReMambaForCausalLM, folder: Path) -> Any:
    return ReMambaForCausalLM.from_pretrained(
        folder / "model",
        device_map="auto",
        max_memory={"cpu": 30_000},
        offload_folder=folder / "disk",
    )


def own_map(whole: ReMambaForCausalLM, folder: Path) -> Any:
    return ReMambaForCausalLM.from_pretrained(
        folder / "model", device_map=PLACES, offload_folder=folder / "disk"
    )


def offloaded_to_memory(whole: ReMambaForCausalLM, folder: Path) -> Any:
    model = ReMambaForCausalLM.from_pretrained(folder / "model")
    return cpu_offload(model, torch.device("cpu"))


def offloaded_to_disk(whole: ReMambaForCausalLM, folder: Path) -> Any:
    model = ReMambaForCausalLM.from_pretrained(folder / "model")
    disk_offload(model, folder / "disk", torch.device("cpu"))
    return model


def dispatched(whole: ReMambaForCausalLM, folder: Path) -> Any:
    model = ReMambaForCausalLM.from_pretrained(folder / "model")
    return dispatch_model(model, PLACES, main_device="cpu", offload_dir=folder / "disk")


def checkpoint_dispatched(whole: ReMambaForCausalLM, folder: Path) -> Any:
    return load_checkpoint_and_dispatch(
        empty(folder), folder / "model", device_map=PLACES, offload_folder=folder / "disk"
    )


def loaded_into_an_empty_model(whole: ReMambaForCausalLM, folder: Path) -> Any:
    model = empty(folder)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(whole.state_dict(), assign=True)
    model.tie_weights()
    return model


AWAY = {
    auto_with_little_memory, own_map, offloaded_to_memory, offloaded_to_disk, dispatched,
    checkpoint_dispatched,
}  # fmt: skip
"""Ways that leave weights elsewhere until their module is called."""
WAYS = [auto, loaded_into_an_empty_model, *sorted(AWAY, key=lambda way: way.__name__)]


ALWAYS = {
    "mamba": {own_map, checkpoint_dispatched},
    "mamba2": {own_map, auto_with_little_memory},
    "falcon_mamba": {own_map, offloaded_to_memory},
}
"""What the default run tries of these; the other pairs are slow together."""


@pytest.mark.parametrize(
    ("backbone", "way"),
    [
        pytest.param(
            backbone, way, id=f"{backbone}-{way.__name__}",
            marks=[] if way in ALWAYS[backbone] else pytest.mark.slow,
        )
        for backbone in BACKBONES
        for way in WAYS
    ],
)  # fmt: skip
def test_all_that_reads_equals_the_whole_model(backbone, way, tmp_path):
    whole, ids = saved(backbone, tmp_path), tokens(2, 20)
    away = way(whole, tmp_path)
    assert any(parameter.is_meta for parameter in away.parameters()) == (way in AWAY)
    with torch.no_grad():
        for form in ("plain", "paper", "exact", "whole", "before"):
            settings = FORMS.get(form, False)
            asked = {"question_lengths": torch.tensor([3, 4])} if form == "before" else {}
            torch.testing.assert_close(
                away(ids, compression=settings, **asked).logits,
                whole(ids, compression=settings, **asked).logits,
                rtol=1e-5,
                atol=1e-5,
            )
        memories = [m.read(ids, compression=FORMS["whole"]) for m in (away, whole)]
        assert memories[0].fingerprint == memories[1].fingerprint
        new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(away.generate(ids, **new), whole.generate(ids, **new))
        found, wanted = (
            m.generate(ids[:, :3], memory=memory, **new)
            for m, memory in zip((away, whole), memories, strict=True)
        )
        assert torch.equal(found, wanted)


def test_a_reader_answers_from_weights_on_disk(tmp_path):
    whole = speaking_model("mamba")
    whole.save_pretrained(tmp_path / "model")
    away = own_map(whole, tmp_path)
    texts = []
    for model in (away, whole):
        reader = Reader(model, tiny_tokenizer())
        options = SamplingOptions(max_new_tokens=6)
        texts.append(
            [reader.read(TEXT).ask("Who?", method=m, options=options).text
             for m in ("plain", FORMS["whole"])]
        )  # fmt: skip
    assert texts[0] == texts[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_offloaded_model_is_saved_whole(backbone, tmp_path):
    whole, ids = saved(backbone, tmp_path), tokens(2, 20)
    own_map(whole, tmp_path).save_pretrained(tmp_path / "again")
    again = ReMambaForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(ids).logits, whole(ids).logits)
