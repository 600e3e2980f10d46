"""Options of generate: what is served by states, and what is refused in one sentence."""

import pytest
import torch

from remamba import InputError
from tests.exactness import BACKBONES, FORMS, tiny_model, tokens

NEW = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.parametrize("form", [None, "paper", "whole"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_states_are_those_of_the_forwards(backbone, form):
    model, ids = tiny_model(backbone), tokens(2, 20)
    options = {"compression": FORMS.get(form, False)}
    asked = {"output_hidden_states": True, "return_dict_in_generate": True}
    out = model.generate(ids, **asked, **options, **NEW)
    assert torch.equal(out.sequences, model.generate(ids, **options, **NEW))
    with torch.no_grad():
        first = model(ids, output_hidden_states=True, **options).hidden_states
    assert len(out.hidden_states) == 3
    assert all(map(torch.equal, out.hidden_states[0], first))
    prompts = torch.tensor([20, 20])
    whole = model(out.sequences, prompt_lengths=prompts, output_hidden_states=True, **options)
    for i, step in enumerate(out.hidden_states[1:]):
        for found, right in zip(step, whole.hidden_states, strict=True):
            width = first[0].shape[1] + i
            right = right[:, width : width + 1]
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_states_of_beams(backbone):
    model, ids = tiny_model(backbone), tokens(2, 20)
    asked = {"output_hidden_states": True, "return_dict_in_generate": True, "num_beams": 3}
    out = model.generate(ids, **asked, **NEW)
    assert [step[0].shape[0] for step in out.hidden_states] == 3 * [6]


@pytest.mark.parametrize("place", ["call", "config", "model"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("guidance_scale", 1.5, "guidance_scale=1.5: .* which a Mamba has not; leave it out"),
        ("cache_implementation", "static", "'static': a Mamba has one kind of cache"),
    ],
)
def test_options_that_states_cannot_serve_are_refused(option, value, said, place):
    model, ids, given = tiny_model("mamba"), tokens(1, 9), {}
    if place == "call":
        given[option] = value
    else:
        setattr(model.generation_config, option, value)
        if place == "config":
            given["generation_config"] = model.generation_config
    with pytest.raises(InputError, match=said):
        model.generate(ids, **given, max_new_tokens=2)


def test_no_guidance_is_served():
    model, ids = tiny_model("mamba"), tokens(1, 9)
    found = model.generate(ids, guidance_scale=1, **NEW)
    assert torch.equal(found, model.generate(ids, **NEW))


def test_what_forward_does_not_know_is_refused_at_the_first_step_and_the_later():
    model, ids = tiny_model("mamba"), tokens(1, 9)
    cache = model(ids, compression=False).cache_params
    for options in ({}, {"cache_params": cache}):
        step = model.prepare_inputs_for_generation(ids, position_ids=ids, **options)
        with pytest.raises(TypeError, match="position_ids"):
            model(**step)
