"""transformers' generate over a model that carries states in place of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from remamba.errors import InputError
from remamba.methods.plain import Plain
from remamba.model.rows import check_rows, enter, flush_right, past_end
from remamba.model.states import StateCache, Text

FIRST_STEP = ("compression", "method", "question_lengths", "memory", "piece_length")
"""Options of `forward` that say how the prompt is read; later steps go on from its states."""
NOT_TOLD = ("next_sequence_length", "labels", "past_key_values")
"""What generate keeps for itself: slices and caches of attention, and a training step's labels."""


def pad_left(mask: Tensor, *given: Tensor | None) -> list[Tensor | None]:
    """Mask (b, l), then ids (b, l) or embeddings (b, l, d), each row's pads moved to its left."""
    moved: list[Tensor | None] = []
    for x in given:
        if x is None:
            moved.append(None)
            continue
        rows = enter(x if x.dim() == 2 else None, mask, x if x.dim() == 3 else None)
        moved.append(flush_right(rows.given, rows.lengths))
    real = ~past_end(rows.lengths, rows.width, mask.device)
    return [flush_right(real.to(mask.dtype), rows.lengths), *moved]


class StatefulGeneration(GenerationMixin):
    """GenerationMixin for ReMamba: compressed prefill, then plain Mamba token by token."""

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore
        """transformers' generate (greedy, sampling, beam), with this model's options.

        Besides generate's own arguments: `compression`, `method`, `question_lengths`, `memory`,
        `piece_length` (see `forward`). Right-padded prompts are moved to the right first, so that
        every row ends in its last token; the sequences returned are then left-padded. Where
        `inputs_embeds` are given beside ids, the embeddings are read and the ids returned.

        A `cache_params` that an earlier call has filled goes on with its text as plain Mamba: give
        the new tokens alone, or the whole text again with the new tokens behind it (in every row).
        The token that was generated last belongs to the cache: given again, it stands there twice.

        Returns:
            (b, l + new) int64; with return_dict_in_generate=True an output whose `kept` tells the
            positions and scores that this call kept of each row (None for plain Mamba) and whose
            `cache_params` continues the text (None after a beam search, whose rows are not the
            sequences).

        Raises:
            InputError: a mask or ids of another shape than what is read; `use_cache=False` where
                the prompt would be compressed anew, or its embeddings lost, at every token;
                `guidance_scale` or `cache_implementation`.
        """
        self._refuse_unserved(kwargs)
        name = "inputs" if kwargs.get("input_ids") is None else "input_ids"
        ids = inputs if name == "inputs" else kwargs["input_ids"]
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        _check_shapes(ids, embeds, mask)
        if mask is not None and not bool(mask[:, -1].all()):
            mask, ids, embeds = pad_left(mask, ids, embeds)
            kwargs |= {"attention_mask": mask, "inputs_embeds": embeds}
            if name == "inputs":
                inputs = ids
            else:
                kwargs["input_ids"] = ids
        cache = self._cache(kwargs)
        is_fresh = cache is None or not cache.is_filled
        earlier = None if is_fresh or cache is None else cache.text
        if earlier is not None and ids is not None and _repeats(earlier, ids, mask):
            earlier = None  # the sequences returned hold it
        out = super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        has_beams = (self._setting(kwargs, "num_beams") or 1) > 1
        if cache is not None and cache.is_filled and not has_beams:
            sequences = out.sequences if isinstance(out, ModelOutput) else out
            end = self._setting(kwargs, "eos_token_id")
            cache.text = _text(sequences, ids, mask, end, earlier)
        if isinstance(out, ModelOutput):
            kept = None if cache is None or not is_fresh else cache.kept
            given = embeds if embeds is not None else ids
            prompts = len(out.sequences) if given is None else len(given)
            if kept is not None and len(kept.lengths) % prompts == 0:
                # beams and several sequences a prompt: a prompt's rows all kept the same
                row = torch.arange(len(out.sequences), device=kept.lengths.device)
                prompt = row * prompts // len(out.sequences)
                kept = kept.select(prompt * (len(kept.lengths) // prompts))
            out.kept = kept
            out.cache_params = None if has_beams else cache
        return out

    def _refuse_unserved(self, kwargs: dict[str, Any]) -> None:
        """Raise InputError for options of generate that a Mamba's states cannot serve."""
        if self._setting(kwargs, "guidance_scale") not in (None, 1):
            raise InputError(
                f"guidance_scale={self._setting(kwargs, 'guidance_scale')}: transformers' guidance "
                "carries a second text in past_key_values, which a Mamba has not; leave it out"
            )
        if self._setting(kwargs, "cache_implementation") is not None:
            raise InputError(
                f"cache_implementation={self._setting(kwargs, 'cache_implementation')!r}: a Mamba "
                "has one kind of cache, states of one size for texts of any length; leave it out"
            )

    def _setting(self, kwargs: dict[str, Any], name: str) -> Any:
        """An option of generate as it will find it: of the call, or of a generation config."""
        own = self.generation_config  # type: ignore[attr-defined]
        given = kwargs.get("generation_config")
        for place in (kwargs.get(name), getattr(given, name, None), getattr(own, name, None)):
            if place is not None:
                return place
        return None

    def _cache(self, kwargs: dict[str, Any]) -> StateCache | None:
        """The cache of this call, given or new, which generate then finds among its options."""
        cache = kwargs.get("cache_params")
        if self._setting(kwargs, "use_cache") is not False:
            if cache is None:
                cache = StateCache(self.config.num_hidden_layers)  # type: ignore[attr-defined]
            kwargs["cache_params"] = cache
            return cache
        if kwargs.get("inputs_embeds") is not None:
            raise InputError(
                "use_cache=False would read the generated tokens without the embeddings in front "
                "of them; leave it out"
            )
        if cache is None or not cache.is_filled:
            asked = (kwargs.get("compression"), kwargs.get("method"))
            is_plain = isinstance(self.resolve_method(*asked), Plain)  # type: ignore[attr-defined]
            if not is_plain or kwargs.get("memory") is not None:
                raise InputError(
                    "use_cache=False would compress the prompt anew at every token; leave it out, "
                    "or give compression=False"
                )
        return cache

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
        is_filled = cache_params is not None and cache_params.is_filled
        # what this function does not know is told to forward, which knows it or refuses it
        told = {k: v for k, v in kwargs.items() if k not in NOT_TOLD and k not in FIRST_STEP}
        if is_filled and not is_first_iteration:
            return {
                **told,
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
        step |= told | {name: kwargs[name] for name in FIRST_STEP if name in kwargs}
        if inputs_embeds is not None:
            return {**step, "inputs_embeds": inputs_embeds}
        text = None if cache_params is None else cache_params.text
        if text is not None and _repeats(text, input_ids, attention_mask):
            assert cache_params is not None
            cache_params.text = None
            rows = enter(input_ids, attention_mask)
            rows = rows.part(text.lengths - 1, rows.lengths)  # from the pending token on
            real = ~past_end(rows.lengths, rows.width, input_ids.device)
            input_ids = flush_right(rows.given, rows.lengths)
            step["attention_mask"] = flush_right(real.long(), rows.lengths)
        return {**step, "input_ids": input_ids}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


def _check_shapes(ids: Tensor | None, embeds: Tensor | None, mask: Tensor | None) -> None:
    """Raise InputError where ids or a mask do not stand beside what is read, row by row."""
    if ids is not None or embeds is not None:
        check_rows(ids, embeds)
    given = embeds if embeds is not None else ids
    if given is None:
        return
    if mask is not None and mask.shape != given.shape[:2]:
        raise InputError(
            f"attention_mask is {tuple(mask.shape)}, the input is {tuple(given.shape[:2])}"
        )
    if ids is not None and ids.shape[1] and ids.shape != given.shape[:2]:
        raise InputError(
            f"input_ids is {tuple(ids.shape)}, inputs_embeds is {tuple(given.shape[:2])}: the ids "
            "beside embeddings are what the answer is returned behind; give one for each "
            "embedding, or none"
        )


def _repeats(text: Text, ids: Tensor, mask: Tensor | None) -> bool:
    """Whether every row of ids (b, l) begins with the text that the cache has read."""
    rows = enter(ids, mask)
    assert rows.input_ids is not None
    return text.begins(rows.input_ids, rows.lengths)


def _text(
    sequences: Tensor,
    ids: Tensor | None,
    mask: Tensor | None,
    end: int | list[int] | Tensor | None,
    earlier: Text | None,
) -> Text:
    """What the cache has read when generate returns `sequences` (b, l + new).

    Args:
        ids: the prompt's ids (prompts, l); None where it was given as embeddings.
        mask: (prompts, l) of the prompt.
        end: the tokens that end a row.
        earlier: the text before the prompt.
    """
    rows, width = sequences.shape[0], 0 if ids is None else ids.shape[1]
    new = sequences[:, width:].cpu()
    prompts = torch.full((rows,), width)
    if ids is not None and mask is not None:
        prompts = mask.sum(dim=1).cpu().repeat_interleave(rows // len(mask))
    ends = torch.as_tensor([] if end is None else end, dtype=torch.long).reshape(-1).cpu()
    is_end = torch.isin(new, ends)
    behind = torch.where(is_end.any(dim=1), new.shape[1] - 1 - is_end.int().argmax(dim=1), 0)
    lengths = prompts + new.shape[1]
    is_whole = torch.tensor(ids is not None)
    if earlier is None:
        return Text(sequences, lengths, behind, is_whole)
    texts = [
        torch.cat([before[len(before) - had :], now[len(now) - has :]])
        for before, had, now, has in zip(
            earlier.ids.to(sequences.device), earlier.lengths, sequences, lengths, strict=True
        )
    ]
    longest = max(len(text) for text in texts)
    joined = torch.stack([torch.nn.functional.pad(t, (longest - len(t), 0)) for t in texts])
    return Text(joined, earlier.lengths + lengths, behind, is_whole & earlier.is_whole)
