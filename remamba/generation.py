"""transformers' generate over a model that carries states in place of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from remamba.batch import enter, flush_right, past_end
from remamba.cache import StateCache
from remamba.errors import InputError


def pad_left(
    mask: Tensor, ids: Tensor | None, embeds: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mask (b, l), ids (b, l) and embeddings (b, l, d) with each row's pads moved to its left."""
    rows = enter(ids if embeds is None else None, mask, embeds)
    real = ~past_end(rows.lengths, rows.width, mask.device)
    return (
        flush_right(real.to(mask.dtype), rows.lengths),
        None if rows.input_ids is None else flush_right(rows.input_ids, rows.lengths),
        None if rows.embeds is None else flush_right(rows.embeds, rows.lengths),
    )


class StatefulGeneration(GenerationMixin):
    """GenerationMixin for ReMamba: compressed prefill, then plain Mamba token by token."""

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore
        """transformers' generate (greedy, sampling, beam), with this model's options.

        Besides generate's own arguments: `compression`, `question_lengths`, `memory`,
        `piece_length` (see `forward`). Right-padded prompts are moved to the right first, so that
        every row ends in its last token; the sequences returned are then left-padded.

        Returns:
            (b, l + new) int64; with return_dict_in_generate=True an output whose `kept` tells the
            kept positions and scores of each row (None for plain Mamba) and whose `cache_params`
            continues the text (None after a beam search, whose rows are not the sequences).
        """
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            named = kwargs.get("input_ids")
            kwargs["attention_mask"], ids, embeds = pad_left(
                mask, inputs if named is None else named, kwargs.get("inputs_embeds")
            )
            if embeds is not None:
                kwargs["inputs_embeds"] = embeds
            elif named is not None:
                kwargs["input_ids"] = ids
            else:
                inputs = ids
        if not kwargs.get("use_cache", True):
            settings = self.resolve_compression(kwargs.get("compression"))  # type: ignore[attr-defined]
            if settings is not None or kwargs.get("memory") is not None:
                raise InputError(
                    "use_cache=False would compress the prompt anew at every token; leave it out, "
                    "or give compression=False"
                )
        elif kwargs.get("cache_params") is None:
            kwargs["cache_params"] = StateCache(self.config.num_hidden_layers)  # type: ignore[attr-defined]
        out = super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        if isinstance(out, ModelOutput):
            cache = kwargs.get("cache_params")
            kept = None if cache is None else cache.kept
            prompts = next(
                len(t)
                for t in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
                if t is not None
            )
            if kept is not None and len(kept.lengths) % prompts == 0:
                # beams and several sequences a prompt: a prompt's rows all kept the same
                row = torch.arange(len(out.sequences), device=kept.lengths.device)
                prompt = row * prompts // len(out.sequences)
                kept = kept.select(prompt * (len(kept.lengths) // prompts))
            out.kept = kept
            out.cache_params = None if hasattr(out, "beam_indices") else cache
        return out

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache_params: StateCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What each step reads: the whole prompt first, then one token on the cache's states."""
        if cache_params is not None and cache_params.is_filled and not is_first_iteration:
            return {
                "input_ids": input_ids[:, -1:],
                "cache_params": cache_params,
                "logits_to_keep": 1,
            }
        step: dict[str, Any] = {
            "cache_params": cache_params,
            "use_cache": use_cache,
            "logits_to_keep": 1,
            "attention_mask": attention_mask,
        }
        for name in ("compression", "question_lengths", "memory", "piece_length"):
            step[name] = kwargs.get(name)
        if inputs_embeds is not None and input_ids.shape[1] == 0:
            return {**step, "inputs_embeds": inputs_embeds}
        if attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]:
            step["attention_mask"] = None
        return {**step, "input_ids": input_ids}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False
