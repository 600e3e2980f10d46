"""ReMambaModel (states) and ReMambaForCausalLM (tokens), models as transformers knows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from remamba.compression_config import CompressionConfig
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.execution.decode import decode_step_of, decodes_in_place
from remamba.execution.passes import PassOptions, not_finite
from remamba.execution.placement import execution_device
from remamba.generation import StatefulGeneration
from remamba.methods.base import Method, Passage, method_of, own_method
from remamba.methods.losses import answer_loss, document_loss, passage_score_loss
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain, read_on
from remamba.methods.remamba import ReMamba
from remamba.methods.selection import Compressor, Kept, Span
from remamba.model.backbone import Backbone
from remamba.model.layers import GatedRMSNorm, RMSNorm, projection, vocabulary_logits
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.rows import IGNORE, Batch, align, enter, leave
from remamba.model.states import StateCache, check_fingerprint
from remamba.pretrained import check_model, fingerprint, known_fingerprint, locate
from remamba.quantised import prepare, settle
from remamba.trunk import PositionsStay

Compression = CompressionConfig | dict[str, Any] | bool | None
"""Settings of `remamba`; a dict: changes to the model's own. False: plain Mamba."""
MethodLike = str | dict[str, Any] | Method
"""A method's name, what its `to_dict` gave, or the method."""


@dataclass
class ReMambaOutput(ModelOutput):
    """What a forward returns; l' is the length of the last stage's sequence."""

    loss: Tensor | None = None
    """Cross-entropy of the labelled tokens by the last stage, mean over tokens."""
    logits: Tensor | None = None
    """(b, l', vocab), or (b, logits_to_keep, vocab) of each row's last positions."""
    labels: Tensor | None = None
    """(b, l') beside the logits: `logits[:, i]` predicts `labels[:, i + 1]`."""
    correct: Tensor | None = None
    """(b,) bool: the last stage predicts every labelled token of the row."""
    score_loss: Tensor | None = None
    stage1_loss: Tensor | None = None
    stage1_correct: Tensor | None = None
    document_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    """(b, l', d) after the final norm (ReMambaModel)."""
    cache_params: StateCache | None = None
    kept: Kept | None = None
    scores: Tensor | None = None
    """(b, m) importance of each position of the span (Eq. 3), which `kept` was chosen by."""
    span: Span | None = None
    """The positions that were scored, of each document or row, in what was read of it."""
    chosen: Tensor | None = None
    """(b,) the chunk that each row goes on from (the method `chunks`); on the host."""


class ReMambaModel(PreTrainedModel):
    """A Mamba backbone that reads its prompt twice; without a language-model head."""

    config_class = ReMambaConfig
    base_model_prefix = "remamba"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ["Block"]
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: ReMambaConfig):
        super().__init__(config)
        self.backbone = Backbone(config)
        self.compressor = Compressor(config.hidden_size)
        if type(self) is ReMambaModel:
            self._mark_initial_values()
            self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embeddings = cast(nn.Embedding, value)

    def _mark_initial_values(self) -> None:
        """Every part has set its own initial values when it was made, unless it lies on "meta".

        transformers then sets those alone that `_is_hf_initialized` does not mark.
        """
        for module in self.modules():
            places = {parameter.is_meta for parameter in module.parameters()}
            if places == {False}:
                module._is_hf_initialized = True  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of a part that has none; its own parts have been given theirs before."""
        if isinstance(module, MambaMixer | Mamba2Mixer):
            module.reset_parameters(cast(ReMambaConfig, self.config))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | RMSNorm | GatedRMSNorm):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """Initial values of every part that has none yet (called by transformers)."""
        query = self.compressor.query_proj
        parts = (*query, *query.parameters())
        is_known = any(getattr(part, "_is_hf_initialized", False) for part in parts)
        super().initialize_weights()
        if not is_known:
            self.compressor.tie_query()

    def new_cache(self) -> StateCache:
        """An empty cache with a place for each layer."""
        return StateCache(self.config.num_hidden_layers)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """A model from a directory, a hub name, or "remamba-tiny", which is in the package.

        Raises:
            InputError: nothing there, another architecture, a corrupt file, or tensors that are
                missing or misshapen (they are named; nothing is initialised anew); weights asked
                for that cannot be quantised so (`remamba/quantised.py` tells which are).
        """
        path = locate(name)
        hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token") if key in kwargs}
        values = check_model(path, **hub)
        is_quantised = prepare(str(name), values, kwargs)
        wanted_info = kwargs.pop("output_loading_info", False)
        # misshapen tensors are collected here and refused below, by name
        kwargs["ignore_mismatched_sizes"] = True
        try:
            loaded: Any = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except (RuntimeError, OSError, ImportError, ValueError) as error:
            if isinstance(error, ValueError) and not is_quantised:
                raise
            raise InputError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from error
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(
                " ".join(map(str, k)) if isinstance(k, tuple) else k for k in info[problem]
            ):
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise InputError(
                    f"{name} has {problem.split('_')[0]} tensors: {', '.join(names[:3])}{more}"
                )
        if is_quantised:
            settle(model)
        return (model, info) if wanted_info else model

    def resolve_method(
        self, compression: Compression = None, method: MethodLike | None = None
    ) -> Method:
        """The way of reading meant.

        Args:
            compression: settings of `remamba`: a dict of changes to the model's own, or a
                CompressionConfig; False: plain Mamba; None: as `method` says.
            method: a name, a dict that `Method.to_dict` gave, or a Method; None: as `compression`
                says, and where that is None too, the model's own.

        Raises:
            InputError: both are given, or there is no such method.
        """
        if method is not None and compression is not None:
            raise InputError(
                f"give either method={method!r} or compression={compression!r}: compression holds "
                "the settings of the method 'remamba', and False means the method 'plain'"
            )
        if compression is False:
            return Plain()
        own = self.config.compression_config
        if method is not None:
            return method_of(method, own)
        if compression is None:
            return own_method(self.config)
        if isinstance(compression, dict):
            return ReMamba(own.replace(**compression))
        if not isinstance(compression, CompressionConfig):
            raise InputError(
                f"compression={compression!r}; give None, False, a dict or a CompressionConfig"
            )
        return ReMamba(compression)

    def read(
        self,
        document_ids: Tensor,
        attention_mask: Tensor | None = None,
        compression: Compression = None,
        piece_length: int | None = None,
        method: MethodLike | None = None,
    ) -> DocumentMemory:
        """The first reading of documents, once: all that later questions need.

        Args:
            document_ids: (b, l) int64, padded on one side.
            attention_mask: (b, l); None when nothing is padding.
            compression, method: see `resolve_method`; None = the model's own, False = plain Mamba.
            piece_length: tokens read at once; None reads the documents whole, above 65,536
                positions in pieces of so many unless gradients are on.

        Returns:
            A memory of b documents; differentiable when gradients are on.

        Raises:
            InputError: this method reads a part of the document again for every question, so that
                no memory can stand for it.
        """
        batch = self._enter(document_ids, attention_mask)
        found = self.resolve_method(compression, method)
        memory, _ = found.read(self, batch, PassOptions(piece_length))
        memory.fingerprint = fingerprint(self)
        return memory

    def load_memory(self, path: str | Path) -> DocumentMemory:
        """The document memory of a file, on this model's device.

        Raises:
            InputError: there is none, it is truncated, or another model's.
        """
        memory = DocumentMemory.load(path, fingerprint(self))
        sizes = (memory.hidden.shape[-1], len(memory.cache.conv_states))
        wanted = (self.config.hidden_size, self.config.num_hidden_layers)
        if sizes != wanted:
            raise InputError(
                f"{path} is of a model with hidden size {sizes[0]} and {sizes[1]} layers, this one "
                f"has {wanted[0]} and {wanted[1]}; read the document again with this model"
            )
        return memory.to(self.device)

    def _run(
        self,
        batch: Batch,
        method: Method | None,
        memory: DocumentMemory | None,
        cache: StateCache | None,
        options: PassOptions,
    ) -> Passage:
        """The states behind the rows; method None is the memory's, or the model's own."""
        if cache is not None and cache.is_filled:  # plain Mamba goes on from where it stands
            return self._go_on(batch, method, memory, cache, options)
        if memory is not None:
            if memory.fingerprint and not self.training:
                check_fingerprint("the memory", memory.fingerprint, known_fingerprint(self))
            passage = (method or memory.method).answer(self, batch, memory, options)
        else:
            passage = (method or self.resolve_method()).prefill(self, batch, cache, options)
        if cache is not None and passage.cache is not None and passage.cache is not cache:
            cache.assign(passage.cache)
            passage.cache = cache
        return passage

    def _go_on(
        self,
        batch: Batch,
        method: Method | None,
        memory: DocumentMemory | None,
        cache: StateCache,
        options: PassOptions,
    ) -> Passage:
        """The states behind rows that follow a text already read.

        Raises:
            InputError: something is asked for that would have no effect there.
        """
        if memory is not None:
            raise InputError("cache_params already holds a text; a memory needs an empty cache")
        if cache.batch_size != batch.rows:
            raise InputError(f"cache_params holds {cache.batch_size} rows, the input {batch.rows}")
        asked = "" if method is None or isinstance(method, Plain) else f"the method {method.name}"
        if bool(batch.question_lengths.any()):
            asked = "question_lengths"
        if asked:
            raise InputError(
                f"cache_params already holds a text, which plain Mamba goes on with: {asked} would "
                "have no effect; leave it out, or give the whole text without cache_params"
            )
        return read_on(self.backbone, batch, cache, options)

    def _asked(self, compression: Compression, method: MethodLike | None) -> Method | None:
        """The method that a call asks for; None where it leaves that open."""
        if compression is None and method is None:
            return None
        return self.resolve_method(compression, method)

    @property
    def device(self) -> torch.device:
        """Where the model computes: inputs go there, and states come from there."""
        return execution_device(self, super().device)

    def _enter(self, *arguments: Tensor | None) -> Batch:
        """The rows as a batch (see `enter`); token ids outside the vocabulary are refused."""
        vocab_size = None if self.training else self.config.vocab_size
        return enter(*arguments, vocab_size=vocab_size, device=self.device)

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
        self._check_outputs(output_attentions, output_hidden_states)
        cache = self._wants_cache(use_cache, cache_params)
        batch = self._enter(
            input_ids, attention_mask, inputs_embeds, None, prompt_lengths, question_lengths
        )
        asked = self._asked(compression, method)
        passage = self._run(batch, asked, memory, cache, PassOptions(piece_length))
        out = ReMambaOutput(
            last_hidden_state=leave(passage.hidden, passage.lengths, batch),
            cache_params=cache,
            kept=passage.kept,
        )
        return self._returned(out, return_dict)

    def _check_outputs(self, attentions: bool | None, hidden_states: bool | None) -> None:
        """Raise InputError when an output is asked for that there is not."""
        if attentions:
            raise InputError("output_attentions=True: a Mamba has no attentions to return")
        if hidden_states:
            raise InputError(
                "output_hidden_states=True is not served; `last_hidden_state` of "
                "ReMambaModel.forward holds the last layer's states"
            )

    def _returned(
        self, out: ReMambaOutput, return_dict: bool | None
    ) -> ReMambaOutput | tuple[Any, ...]:
        """The output, or its values in the order of its fields where the caller wants a tuple."""
        wanted = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return out if wanted else out.to_tuple()


class Trunk(PositionsStay, ReMambaModel):
    """A causal model below its head, on the same parts."""


class ReMambaForCausalLM(ReMambaModel, StatefulGeneration, GenerationMixin):
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
        self.lm_head = value

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
        logits_to_keep: int = 0,
        piece_length: int | None = None,
        score_targets: Tensor | None = None,
        score_negatives: str = "document",
        with_stage1_loss: bool = False,
        with_document_loss: bool = False,
        return_logits: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
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
            logits_to_keep: logits of each row's last so many positions only; 0: of all.
            piece_length: tokens the backbone reads at once; bounds the memory, changes no result.
                None: all, or 65,536 positions of all rows together if gradients are off.
            score_targets: (b, l) bool over input_ids (over the document, if it stands apart): the
                positions that `score_loss` wants kept. Or (b, l, n): of each of n things to find.
            score_negatives: what the targets are told from: "document", the rest of the row's span;
                "batch", the spans of the batch's other documents too.
            with_stage1_loss: also `stage1_loss`, of the labels by stage 1.
            with_document_loss: also `document_loss`, next-token loss of document_ids.
            return_logits: False leaves the logits out; losses are built at labelled positions only.
            output_attentions, output_hidden_states: refused where True.
            return_dict: False returns a tuple of what there is, in the order of ReMambaOutput's
                fields; None: as the configuration has it.

        With compression on, the logits are those of the spliced sequence, (b, l - m + k, vocab), m
        the span and k the kept vectors of the longest row; for placement "before_question" and for
        memories, (b, k + question, vocab).
        """
        self._check_outputs(output_attentions, output_hidden_states)
        if past_key_values is not None:
            raise InputError(
                "past_key_values: a Mamba has no keys and values, which prefix tuning would set; "
                "use prompt tuning, or LoRA; what a text left is given as cache_params"
            )
        given = (
            attention_mask, inputs_embeds, labels, prompt_lengths, question_lengths, memory,
            document_ids, score_targets,
        )  # fmt: skip
        is_step = return_logits and not compression and method is None
        if is_step and decodes_in_place(self, input_ids, cache_params, *given):
            step = self._decode(cast(Tensor, input_ids), cast(StateCache, cache_params))
            return self._returned(step, return_dict)
        cache = self._wants_cache(use_cache, cache_params)
        prefill = cache is None or not cache.is_filled
        batch = self._enter(
            input_ids, attention_mask, inputs_embeds, labels, prompt_lengths, question_lengths
        )
        tail = logits_to_keep if labels is None else 0
        found: dict[str, Any] = {}
        documents = None
        if document_ids is not None:
            if memory is not None:
                raise InputError("give either memory or document_ids, and not both")
            documents = self._enter(document_ids, document_attention_mask)
            reads = self.resolve_method(compression, method)
            memory, states = reads.read(
                self, documents, PassOptions(piece_length, 0, with_document_loss)
            )
            if states is not None:
                found["document_loss"] = document_loss(self.lm_head, documents, states)
        options = PassOptions(piece_length, tail, with_stage1_loss)
        passage = self._run(batch, self._asked(compression, method), memory, cache, options)
        if return_logits:
            logits = vocabulary_logits(self.lm_head, passage.hidden)
            if prefill and not self.training:
                _check_finite(logits)
            found["logits"] = logits if tail else leave(logits, passage.lengths, batch)
        if passage.labels is not None:
            found["loss"], found["correct"] = answer_loss(
                self.lm_head, passage.hidden, passage.labels
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
        out = ReMambaOutput(cache_params=cache, kept=passage.kept, chosen=passage.chosen, **found)
        return self._returned(out, return_dict)

    def _decode(self, input_ids: Tensor, cache: StateCache) -> ReMambaOutput:
        """One more token (b, 1) of each row of a filled cache, by the captured step."""
        batch = self._enter(input_ids)
        if cache.batch_size != batch.rows:
            raise InputError(f"cache_params holds {cache.batch_size} rows, the input {batch.rows}")
        logits = decode_step_of(self).logits(input_ids[:, 0], cache)
        return ReMambaOutput(logits=logits.unsqueeze(1), cache_params=cache)


def _check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).flatten(1).any(dim=1).nonzero()[0])
        raise not_finite(f"the logits of row {row}", logits.dtype)
