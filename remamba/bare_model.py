"""What every ReMamba can do: read documents and prompts by a method; and a model of that alone.

Importing transformers' PreTrainedModel takes three times as long as importing torch, and nobody
who asks a document a question needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from remamba.compression_config import CompressionConfig
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.placement import execution_device
from remamba.execution.steps import Steps, finish
from remamba.methods.base import Method, Passage, method_of, own_method
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import Plain, read_on
from remamba.methods.remamba import ReMamba
from remamba.methods.selection import Compressor
from remamba.model.backbone import Backbone
from remamba.model.layers import projection
from remamba.model.rows import Batch
from remamba.model.rows import enter as enter_rows
from remamba.model.states import StateCache, check_fingerprint
from remamba.pretrained import fingerprint, known_fingerprint

Compression = CompressionConfig | dict[str, Any] | bool | None
"""Settings of `remamba`; a dict: changes to the model's own. False: plain Mamba."""
MethodLike = str | dict[str, Any] | Method
"""A method's name, what its `to_dict` gave, or the method."""


class BaseReMamba(nn.Module):
    """A backbone, a compressor, and ways of reading."""

    config: ReMambaConfig
    generation_config: GenerationConfig
    name_or_path: str
    backbone: Backbone
    compressor: Compressor
    lm_head: nn.Linear
    """Of a model that predicts tokens."""

    def new_cache(self) -> StateCache:
        """An empty cache with a place for each layer."""
        return StateCache(self.config.num_hidden_layers)

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
            InputError: both are given, there is no such method, or this model cannot read by it.
        """
        found = self._method_meant(compression, method)
        found.check(self)
        return found

    def _method_meant(self, compression: Compression, method: MethodLike | None) -> Method:
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
            A memory of b documents. It is differentiable in training mode (`model.train()`); in
            evaluation mode, which a loaded model is in, no graph is kept.

        Raises:
            InputError: this method reads a part of the document again for every question, so that
                no memory can stand for it.
        """
        batch = self.enter(document_ids, attention_mask)
        found = self.resolve_method(compression, method)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            memory, _ = finish(found.read(self, batch, PassOptions(piece_length)))
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
        ids = memory.input_ids
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise InputError(
                f"{path} has tokens from {int(ids.min())} to {int(ids.max())}, and the model knows "
                f"0 to {self.config.vocab_size - 1}; read the document again with this model"
            )
        token, probe = torch.zeros(1, 1, dtype=torch.long, device=self.device), self.new_cache()
        with torch.no_grad():
            self.backbone(self.backbone.embeddings(token), cache=probe)
        own = probe.tensors()
        for name, state in memory.cache.tensors().items():
            if name in own and state.shape[1:] != own[name].shape[1:]:
                raise InputError(
                    f"{path}: {name} is {tuple(state.shape[1:])} for each row, and this model's is "
                    f"{tuple(own[name].shape[1:])}; read the document again with this model"
                )
        return memory.to(self.device)

    def passing(
        self,
        batch: Batch,
        method: Method | None,
        memory: DocumentMemory | None,
        cache: StateCache | None,
        options: PassOptions,
    ) -> Steps[Passage]:
        """The states behind the rows; method None is the memory's, or the model's own."""
        if cache is not None and cache.is_filled:  # plain Mamba goes on from where it stands
            return (yield from self._go_on(batch, method, memory, cache, options))
        if memory is not None:
            if memory.fingerprint and not self.training:
                check_fingerprint("the memory", memory.fingerprint, known_fingerprint(self))
            asked = method or memory.method
            memory.check_method(asked)
            passage = yield from asked.answer(self, batch, memory, options)
        else:
            method = method or self.resolve_method()
            passage = yield from method.prefill(self, batch, cache, options)
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
    ) -> Steps[Passage]:
        """The states behind rows that follow a text already read.

        Raises:
            InputError: something is asked for that would have no effect there.
        """
        if memory is not None:
            raise InputError("cache_params already holds a text; a memory needs an empty cache")
        if cache.batch_size != batch.rows:
            raise InputError(f"cache_params holds {cache.batch_size} rows, the input {batch.rows}")
        is_meant = method is None or (
            isinstance(method, Plain)
            if cache.rule is None
            else method.goes_on_by(self) == cache.rule
        )
        asked = "" if is_meant or method is None else f"the method {method.name}"
        if bool(batch.question_lengths.any()):
            asked = "question_lengths"
        if asked:
            how = "plain Mamba" if cache.rule is None else "its states' own rule"
            raise InputError(
                f"cache_params already holds a text, which {how} goes on with: {asked} would "
                "have no effect; leave it out, or give the whole text without cache_params"
            )
        return (yield from read_on(self.backbone, batch, cache, options))

    def _asked(self, compression: Compression, method: MethodLike | None) -> Method | None:
        """The method that a call asks for; None where it leaves that open."""
        if compression is None and method is None:
            return None
        return self.resolve_method(compression, method)

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and of all weights that are not quantised."""
        return self.backbone.embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes: inputs go there, and states come from there."""
        return execution_device(self, next(self.parameters()).device)

    def enter(self, *arguments: Tensor | None) -> Batch:
        """The rows as a batch, see model/rows.py; ids outside the vocabulary are refused."""
        vocab_size = None if self.training else self.config.vocab_size
        return enter_rows(*arguments, vocab_size=vocab_size, device=self.device)


class BareReMamba(BaseReMamba):
    """A ReMamba for reading and answering, with nothing of transformers' models.

    It has the parts and the weights' names of a ReMambaForCausalLM. Commands and readers that load
    a model by name use it; to train, save or call a model, load a ReMambaForCausalLM.
    """

    def __init__(self, config: ReMambaConfig):
        super().__init__()
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.name_or_path = ""
        self.backbone = Backbone(config)
        self.compressor = Compressor(config.hidden_size)
        self.lm_head = projection(config, config.hidden_size, config.vocab_size, False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head be the embeddings, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.backbone.embeddings.weight
