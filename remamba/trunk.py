"""The model below its head, for those who bring a head of their own, as TRL's trainers do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from remamba.errors import InputError
from remamba.methods.plain import Plain
from remamba.model.layers import is_plain


class PositionsStay(PreTrainedModel):
    """Gives a state for each position given, and refuses what would move them; for a ReMambaModel.

    Who multiplies these states by the head takes each for that of the position it was given at.
    """

    has_plain_head = True

    @classmethod
    def below(cls, model: nn.Module) -> Any:
        """A view of a causal model without its head: the same parts, whatever was done to them."""
        view = cls.__new__(cls)
        nn.Module.__init__(view)
        parts = {name: part for name, part in model.named_children() if name != "lm_head"}
        # hooks, and a forward that was replaced, are the whole model's
        own = {
            name: value
            for name, value in model.__dict__.items()
            if not name.endswith("_hooks") and name != "forward"
        }
        view.__dict__.update({**own, "_modules": parts})
        head: Any = getattr(model, "lm_head", None)
        view.has_plain_head = head is None or is_plain(head.weight)
        return view

    def forward(self, *args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """`last_hidden_state` (b, l, d) of the positions given, read as plain Mamba.

        Raises:
            InputError: the model's method would move the positions, several texts lie in a row, or
                the head is quantised, whose weight would be read as numbers.
        """
        model: Any = self
        if position_ids is not None:
            raise InputError(
                "position_ids: several texts in one row, from each of which a Mamba's states would "
                "run on into the next; use packing=False and padding_free=False"
            )
        if not model.has_plain_head:
            raise InputError(
                "the head is quantised, and a head outside the model (TRL's) would read its weight "
                "as numbers; load it with llm_int8_skip_modules=['lm_head'] (bitsandbytes) or "
                "modules_to_not_convert=['lm_head'] (torchao)"
            )
        method = model.resolve_method(kwargs.get("compression"), kwargs.get("method"))
        if not isinstance(method, Plain):
            raise InputError(
                f"the method {method.name} moves the positions, for which a head outside the model "
                "(TRL's) takes its states one by one; set model.config.method = 'plain', or train "
                "it with `remamba train` or transformers' Trainer"
            )
        return super().forward(*args, **kwargs)
