"""Gradients of training in float64: the fast path, the plain reference, and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from remamba import ReMambaForCausalLM
from remamba.ops.backend import use_backend
from tests.tiny import tiny_model

RELATIVE = 1e-6
FAMILIES = ("mamba", "mamba2", "falcon_mamba")
FORMS: dict[str, dict[str, Any]] = {
    "selective": {"adaption": "selective"},
    "exact": {"adaption": "exact"},
    "multiplicative": {"adaption": "multiplicative"},
    "none": {"adaption": "none"},
    "residual": {"adaption": "multiplicative", "value": "residual"},
    "relative": {"adaption": "exact", "importance": "relative", "window": 3},
    "append": {"adaption": "selective", "placement": "append"},
    "before_question": {"adaption": "exact", "placement": "before_question"},
}
PROMPTS, QUESTIONS, LENGTHS = (23, 17), (4, 5), (29, 21)


def setting(family: str, form: str) -> tuple[ReMambaForCausalLM, dict]:
    """A float64 model of two layers, and a batch of two unequal rows with all losses."""
    model = tiny_model(family).double().train()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (2, max(LENGTHS)), generator=generator)
    position = torch.arange(max(LENGTHS))
    lengths, prompts = torch.tensor(LENGTHS), torch.tensor(PROMPTS)
    answer = (position >= prompts[:, None]) & (position < lengths[:, None])
    targets = torch.zeros_like(ids, dtype=torch.bool)
    targets[:, 3] = True
    return model, {
        "input_ids": ids,
        "attention_mask": (position < lengths[:, None]).long(),
        "labels": torch.where(answer, ids, -100),
        "prompt_lengths": prompts,
        "question_lengths": torch.tensor(QUESTIONS),
        "score_targets": targets,
        "with_stage1_loss": True,
        "return_logits": False,
        "compression": {
            "length": 0.8, "keep_ratio": 0.4, **FORMS[form],
        },
    }  # fmt: skip


def loss_of(model: ReMambaForCausalLM, batch: dict[str, Any]) -> Tensor:
    out = model(**batch)
    return out.loss + 0.5 * out.stage1_loss + 0.3 * out.score_loss


def gradients(model: ReMambaForCausalLM, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_has_the_references_gradients(family: str, form: str) -> None:
    """Of every tensor, with layers recomputed and without."""
    model, batch = setting(family, form)
    with use_backend("ref"):
        expected = gradients(model, batch)
    idle = {name for name, _ in model.named_parameters()} - set(expected)
    has_theta = FORMS[form]["adaption"] in ("selective", "exact")
    assert idle == (set() if has_theta else {n for n in idle if n.endswith("adaption.theta")})
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found = gradients(model, batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.dtype == torch.float64
            assert gradient.any(), name
            error = (found[name] - gradient).norm() / gradient.norm()
            assert error < RELATIVE, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("family", "form"),
    [(family, "selective") for family in FAMILIES]
    + [("mamba", "exact"), ("mamba2", "multiplicative"), ("mamba2", "before_question")],
)
def test_gradients_are_the_slopes_of_the_loss(
    family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every tensor in a random direction, through both stages; nothing is detached.

    The paper's gradient into the scores is alpha times the slope, which is left out here.
    """
    scale = "remamba.methods.selection._ScaleGradient.apply"
    monkeypatch.setattr(scale, staticmethod(lambda alpha: alpha))
    model, batch = setting(family, form)
    found = gradients(model, batch)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name not in found:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction += found[name] / found[name].norm() * direction.norm()
        # as far as the slope stays one: errors fall with the fourth power of the step
        step = 1e-4 / direction.norm()
        values = []
        with torch.no_grad():
            for times in (-2, -1, 1, 2):
                parameter += times * step * direction
                values.append(float(loss_of(model, batch)))
                parameter -= times * step * direction
        slope = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * step)
        expected = (found[name] * direction).sum()
        assert abs(slope - expected) < RELATIVE * abs(expected), f"{name}: {slope} {expected}"
