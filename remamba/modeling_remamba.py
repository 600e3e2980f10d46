"""ReMambaModel (states) and ReMambaForCausalLM (tokens), models as transformers knows them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from remamba.bare_model import Compression, MethodLike
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.execution.decode import decode_step_of, decodes_in_place
from remamba.execution.passes import LayerStates, PassOptions, check_finite
from remamba.execution.steps import finish
from remamba.generation import StatefulGeneration
from remamba.methods.base import Passage
from remamba.methods.losses import answer_loss, document_loss, passage_score_loss
from remamba.methods.memory import DocumentMemory
from remamba.methods.selection import Compressor
from remamba.model.backbone import Backbone
from remamba.model.layers import projection, vocabulary_logits
from remamba.model.rows import IGNORE, Batch, align, leave
from remamba.model.states import StateCache
from remamba.modeling_base import ReMambaOutput, ReMambaPreTrainedModel
from remamba.trunk import PositionsStay


class ReMambaModel(ReMambaPreTrainedModel):
    """A Mamba backbone that reads its prompt twice; without a language-model head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: ReMambaConfig):
        super().__init__(config)
        self.backbone = Backbone(config)
        self.compressor = Compressor(config.hidden_size)
        if type(self) is ReMambaModel:
            self._mark_initial_values()
            self.post_init()

    def _wants_cache(self, use_cache: bool | None, cache: StateCache | None) -> StateCache | None:
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        return self.new_cache() if use_cache and cache is None else cache

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        question_lengths: Tensor | None = None,
        compression: Compression = None,
        method: MethodLike | None = None,
        memory: DocumentMemory | None = None,
        cache_params: StateCache | None = None,
        use_cache: bool | None = None,
        piece_length: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ReMambaOutput | tuple[Any, ...]:
        """`last_hidden_state` (b, l', d) of the last stage; arguments as in ReMambaForCausalLM."""
        layers = self._layers_wanted(output_attentions, output_hidden_states)
        cache = self._wants_cache(use_cache, cache_params)
        batch = self.enter(
            input_ids, attention_mask, inputs_embeds, None, prompt_lengths, question_lengths
        )
        asked = self._asked(compression, method)
        options = PassOptions(piece_length, layers=layers)
        passage = finish(self.passing(batch, asked, memory, cache, options))
        out = ReMambaOutput(
            last_hidden_state=leave(passage.hidden, passage.lengths, batch),
            cache_params=cache,
            hidden_states=_hidden_states(layers, passage, batch),
            kept=passage.kept,
        )
        return self._returned(out, return_dict)

    def _layers_wanted(
        self, attentions: bool | None, hidden_states: bool | None
    ) -> LayerStates | None:
        """Where a reading leaves every layer's states; None where nobody asks for them.

        Raises:
            InputError: attentions are asked for.
        """
        if attentions:
            raise InputError("output_attentions=True: a Mamba has no attentions to return")
        if hidden_states is None:
            hidden_states = self.config.output_hidden_states
        return LayerStates() if hidden_states else None

    def _returned(
        self, out: ReMambaOutput, return_dict: bool | None
    ) -> ReMambaOutput | tuple[Any, ...]:
        """The output, or its values in the order of its fields where the caller wants a tuple."""
        wanted = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return out if wanted else out.to_tuple()


class Trunk(PositionsStay, ReMambaModel):  # type: ignore[misc]
    """A causal model below its head, on the same parts."""


class ReMambaForCausalLM(ReMambaModel, StatefulGeneration, GenerationMixin):  # type: ignore[misc]
    """A ReMamba that predicts tokens."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = []

    def __init__(self, config: ReMambaConfig):
        super().__init__(config)
        self.lm_head = projection(config, config.hidden_size, config.vocab_size, False)
        self._mark_initial_values()
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The model below the head; made anew at each asking, as its parts may be replaced."""
        return Trunk.below(self)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = cast(nn.Linear, value)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        question_lengths: Tensor | None = None,
        compression: Compression = None,
        method: MethodLike | None = None,
        memory: DocumentMemory | None = None,
        document_ids: Tensor | None = None,
        document_attention_mask: Tensor | None = None,
        cache_params: StateCache | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        piece_length: int | None = None,
        score_targets: Tensor | None = None,
        score_negatives: str = "document",
        with_stage1_loss: bool = False,
        with_document_loss: bool = False,
        return_logits: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **shifted: Tensor | None,
    ) -> ReMambaOutput | tuple[Any, ...]:
        """Logits of the last stage, and the losses asked for.

        Args:
            input_ids: (b, l) int64 prompts (and answers, in training); with a memory or documents,
                questions (and answers), row i on document i // (rows / documents). Ids and masks
                may lie on the host: a GPU is then not waited for until the logits are there.
            attention_mask: (b, l), padded on one side.
            inputs_embeds: (b, l, d) in place of input_ids.
            labels: (b, l) in the coordinates of input_ids, -100 where there is no loss. They are
                moved to the spliced sequence and shifted inside.
            prompt_lengths: (b,) tokens that are prompt; answers never count as such. Default: up to
                the first label, or the whole row.
            question_lengths: (b,) the last so many tokens of the prompt are the question, which is
                never compressed; the span is taken of the document before it.
            compression: settings of `remamba`; None = the model's own way, False = plain Mamba.
            method: another way of reading, in place of compression (see `resolve_method`).
            memory: documents read before with `read`.
            document_ids, document_attention_mask: (documents, l) to be read in this call.
            cache_params: a filled cache continues plain Mamba; an empty one is filled.
            past_key_values: refused; PEFT's prefix tuning would give them.
            logits_to_keep: logits of each row's last so many positions only (of as many as the
                longest row has, if that is less); 0: of all. Or (n,) int64, the positions of the
                last stage's sequence to have logits of. With labels a number has no effect.
            piece_length: tokens the backbone reads at once; bounds the memory, changes no result.
                None: all, or 65,536 positions of all rows together if gradients are off.
            score_targets: (b, l) bool over input_ids (over the document, if it stands apart): the
                positions that `score_loss` wants kept. Or (b, l, n): of each of n things to find.
            score_negatives: what the targets are told from: "document", the rest of the row's span;
                "batch", the spans of the batch's other documents too.
            with_stage1_loss: also `stage1_loss`, of the labels by stage 1.
            with_document_loss: also `document_loss`, next-token loss of document_ids.
            return_logits: False leaves the logits out; losses are built at labelled positions only.
            num_items_in_batch: what the sum of the labelled tokens' cross-entropies is divided by
                for `loss`; None: their number. transformers' Trainer gives the number in all the
                batches of a step, so that gradient accumulation weighs tokens, not batches.
            output_hidden_states: also `hidden_states`, every layer's, of the last stage's sequence.
            output_attentions: refused where True.
            return_dict: False returns a tuple of what there is, in the order of ReMambaOutput's
                fields; None: as the configuration has it.
            shifted: `shift_labels` (b, l) and nothing else, in place of labels: position i predicts
                `shift_labels[:, i]`. Named in the signature, the Trainer would want them always.

        With compression on, the logits are those of the spliced sequence, (b, l - m + k, vocab), m
        the span and k the kept vectors of the longest row; for placement "before_question" and for
        memories, (b, k + question, vocab).
        """
        layers = self._layers_wanted(output_attentions, output_hidden_states)
        picked = _checked_positions(logits_to_keep)
        # no argument of its own: Trainer takes each argument with "label" in its name for one that
        # every row must bring
        if (shift_labels := shifted.pop("shift_labels", None)) is not None:
            labels = _shifted_back(shift_labels)
        if shifted:
            raise TypeError(f"forward() got an unexpected keyword argument {next(iter(shifted))!r}")
        if past_key_values is not None:
            raise InputError(
                "past_key_values: a Mamba has no keys and values, which prefix tuning would set; "
                "use prompt tuning, or LoRA; what a text left is given as cache_params"
            )
        given = (
            attention_mask, inputs_embeds, labels, prompt_lengths, question_lengths, memory,
            document_ids, score_targets, layers, picked,
        )  # fmt: skip
        is_step = return_logits and not compression and method is None
        if is_step and decodes_in_place(self, input_ids, cache_params, *given):
            step = self._decode(cast(Tensor, input_ids), cast(StateCache, cache_params))
            return self._returned(step, return_dict)
        cache = self._wants_cache(use_cache, cache_params)
        prefill = cache is None or not cache.is_filled
        batch = self.enter(
            input_ids, attention_mask, inputs_embeds, labels, prompt_lengths, question_lengths
        )
        tail = cast(int, logits_to_keep) if labels is None and picked is None else 0
        found: dict[str, Any] = {}
        documents = None
        if document_ids is not None:
            if memory is not None:
                raise InputError("give either memory or document_ids, and not both")
            documents = self.enter(document_ids, document_attention_mask)
            reads = self.resolve_method(compression, method)
            how = PassOptions(piece_length, 0, with_document_loss)
            memory, states = finish(reads.read(self, documents, how))
            if states is not None:
                found["document_loss"] = document_loss(self.lm_head, documents, states)
        options = PassOptions(piece_length, tail, with_stage1_loss, layers)
        asked = self._asked(compression, method)
        passage = finish(self.passing(batch, asked, memory, cache, options))
        if return_logits:
            hidden = passage.hidden
            if picked is not None:
                hidden = _at(leave(hidden, passage.lengths, batch), picked)
            logits = vocabulary_logits(self.lm_head, hidden)
            if prefill and not self.training:
                check_finite(logits)
            is_placed = tail or picked is not None
            found["logits"] = logits if is_placed else leave(logits, passage.lengths, batch)
        if passage.labels is not None:
            found["loss"], found["correct"] = answer_loss(
                self.lm_head, passage.hidden, passage.labels, num_items_in_batch
            )
            found["labels"] = leave(passage.labels, passage.lengths, batch, IGNORE)
        reading = passage.reading
        if reading is not None and reading.everything is not None and labels is not None:
            found["stage1_loss"], found["stage1_correct"] = answer_loss(
                self.lm_head, reading.everything, passage.batch.labels
            )
        if score_targets is not None and passage.scores is not None:
            # they lie over the documents where these stand apart, else over the rows
            owner = batch if memory is None else documents
            targets = score_targets if owner is None else align(score_targets, owner)
            found["score_loss"] = passage_score_loss(
                self.compressor, passage, targets, score_negatives
            )
        if reading is not None and passage.scores is not None:
            found |= {"scores": passage.scores.detach(), "span": reading.span}
        found["hidden_states"] = _hidden_states(layers, passage, batch)
        out = ReMambaOutput(cache_params=cache, kept=passage.kept, chosen=passage.chosen, **found)
        return self._returned(out, return_dict)

    def _decode(self, input_ids: Tensor, cache: StateCache) -> ReMambaOutput:
        """One more token (b, 1) of each row of a filled cache, by the captured step."""
        batch = self.enter(input_ids)
        if cache.batch_size != batch.rows:
            raise InputError(f"cache_params holds {cache.batch_size} rows, the input {batch.rows}")
        logits = decode_step_of(self).logits(input_ids[:, 0], cache)
        return ReMambaOutput(logits=logits.unsqueeze(1), cache_params=cache)


def _hidden_states(
    layers: LayerStates | None, passage: Passage, batch: Batch
) -> tuple[Tensor, ...] | None:
    """What a reading left in `layers`, padded as the caller's rows are."""
    if layers is None:
        return None
    states = layers.joined()
    # a token that an earlier call had left unread stands in front, and is not of these rows
    unread = states[0].shape[1] - int(passage.lengths.max())
    if unread:
        states = [x[:, unread:] for x in states]
    return tuple(leave(x, passage.lengths, batch) for x in states)


def _checked_positions(logits_to_keep: int | Tensor) -> Tensor | None:
    """(n,) int64 the positions that logits_to_keep names; None where it is a number.

    Raises:
        InputError: it is neither.
    """
    x = logits_to_keep
    if isinstance(x, Tensor):
        if x.dim() == 1 and not x.is_floating_point() and x.dtype != torch.bool:
            return x.long()
        raise InputError(
            f"logits_to_keep is a tensor of shape {tuple(x.shape)} and {x.dtype}; give (n,) whole "
            "numbers, which are positions, or a number"
        )
    if not isinstance(x, int) or x < 0:
        raise InputError(f"logits_to_keep = {x!r} must be a whole number, 0 or more, or a tensor")
    return None


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    """hidden (b, l, d) at the positions (n,) -> (b, n, d); a negative one counts from the end."""
    width = hidden.shape[1]
    outside = (positions < -width) | (positions >= width)
    if bool(outside.any()):
        raise InputError(
            f"logits_to_keep names the position {int(positions[outside][0])}; the sequence that "
            f"the logits are of has {width}"
        )
    return hidden[:, positions.to(hidden.device)]


def _shifted_back(shift_labels: Tensor) -> Tensor:
    """The labels (b, l) whose shifted form was given."""
    if bool((shift_labels[:, -1:] != IGNORE).any()):
        raise InputError(
            f"the last column of shift_labels must be {IGNORE}: the token it names stands behind "
            "the rows, and is not read; give rows that are one token longer"
        )
    return torch.nn.functional.pad(shift_labels[:, :-1], (1, 0), value=IGNORE)
