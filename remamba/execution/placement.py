"""Where a model computes, also when accelerate keeps its weights elsewhere until they are used."""

from __future__ import annotations

import torch
from torch import nn


def execution_device(model: nn.Module, first: torch.device) -> torch.device:
    """The device that inputs go to.

    Args:
        first: that of the model's first weight; "meta" where accelerate brings it for its call.
    """
    if first.type != "meta":
        return first
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # hooks may be chained
            if (place := getattr(part, "execution_device", None)) is not None:
                return (
                    torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
                )
    return first
