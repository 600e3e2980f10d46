"""Every method with a layer rule, for a tiny model, and what must be equal under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from remamba import ReMambaForCausalLM
from remamba.methods.base import Method
from remamba.methods.decimate import Decimate
from remamba.methods.filter import Filter
from remamba.methods.rule_table import RuleTable
from remamba.methods.scale import Scale
from remamba.model.layer_rules import KINDS, LayerRule, StepRule, Steps
from remamba.pretrained import fingerprint

Pairs = Iterator[tuple[Tensor, Tensor]]
"""What was found, and what it must be."""


class _Look(LayerRule, StepRule):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def at(self, layer: int) -> StepRule:
        return self

    def __call__(self, steps: Steps) -> Steps:
        self.seen.append(steps.delta())
        return steps


@torch.no_grad()
def filter_of(model: ReMambaForCausalLM, folder: Path) -> Filter:
    """A filter that drops about half of the steps in every second channel, from 12 tokens on."""
    ids = torch.randint(1, 61, (1, 40), generator=torch.Generator().manual_seed(0))
    look, layers = _Look(), []
    model.backbone(model.backbone.embeddings(ids), rule=look)
    for steps in look.seen:
        channels = list(range(0, steps.shape[-1], 2))
        # beside the values themselves, which rounding would push to either side
        middle = steps[0][:, channels].median(dim=0).values
        thresholds = [(middle * share).tolist() for share in (0.83, 1.03)]
        layers.append({"channels": channels, "thresholds": thresholds})
    values = {
        "lengths": [20, 40], "from_tokens": 12, "channels": look.seen[0].shape[-1],
        "layers": layers,
    }  # fmt: skip
    RuleTable("filter", fingerprint(model), values).save(folder / "filter.json")
    return Filter(str(folder / "filter.json"))


def layer_rules(model: ReMambaForCausalLM, folder: Path) -> dict[str, Method]:
    """Each by a name."""
    scales: dict[str, Method] = {f"scale-{of}": Scale(factor=0.5, of=of) for of in KINDS}
    decimate = Decimate(tokens=24, layers=(0, 1), beta=0.9)
    return {"filter": filter_of(model, folder), **scales, "decimate": decimate}


def decoded_and_parallel(model: ReMambaForCausalLM, folder: Path) -> Pairs:
    """Forced decoding, behind a prompt and behind a memory, and one forward over it all."""
    ids = torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    prompt, question = torch.tensor([32, 32]), torch.tensor([4, 4])
    for method in layer_rules(model, folder).values():
        given = {"method": method, "question_lengths": question}
        whole = model(ids, prompt_lengths=prompt, **given).logits[:, -8:]
        memory = model.read(ids[:, :28], method=method)
        for out in (model(ids[:, :32], **given), model(ids[:, 28:32], memory=memory)):
            cache = out.cache_params
            steps = [model(ids[:, i : i + 1], cache_params=cache).logits for i in range(32, 40)]
            yield torch.cat(steps, 1), whole


def parts_and_whole(model: ReMambaForCausalLM, folder: Path) -> Pairs:
    """A batch in pieces and whole, and a row by itself and beside a longer one."""
    ids = torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(40) < torch.tensor([[40], [29]])).long()
    for method in layer_rules(model, folder).values():
        given = {"method": method, "logits_to_keep": 3}
        whole = model(ids, mask, **given).logits
        yield model(ids, mask, piece_length=7, **given).logits, whole
        yield model(ids[1:, :29], **given).logits, whole[1:]
