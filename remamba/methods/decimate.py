"""`decimate`: in chosen layers the weakest tokens of the document leave the sequence.

This is DeciMamba (Ben-Kish et al., "DeciMamba: Exploring the Length Extrapolation Potential of
Mamba", arXiv 2406.14528). In the i-th of the chosen layers, i = 0, 1, ..., a token's strength is
the Euclidean norm of its Delta over the channels. The max(L beta^i, 20) strongest of the document's
tokens stay, in their order; the scan of this layer and all later layers read these alone. The
question always stays (the release protects the last token only), and decoding is plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Method, Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import no_span, read_plain, states_for
from remamba.model.layer_rules import Decimating
from remamba.model.rows import Batch, cut, ignore_pads, to_device
from remamba.model.states import StateCache

FEWEST = 20
"""A layer never leaves fewer tokens of a document."""


@dataclass(frozen=True)
class Decimate(Method):
    """Weak tokens of the document leave the sequence; a row is read whole, never in pieces."""

    name = "decimate"

    tokens: int = 2000
    """How many tokens of the document stay at most in the first of the chosen layers [L_base]."""
    layers: tuple[int, ...] | None = None
    """The chosen layers, counted from 0; None: the one in the middle of the model."""
    beta: float = 0.5
    """Each next chosen layer leaves this share of what the one before may leave."""

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 1:
            raise InputError(
                f"the method decimate with tokens = {self.tokens!r:.60}: give a number from 1 on"
            )
        if self.layers is not None:
            given = self.layers
            if not isinstance(given, list | tuple) or any(
                type(layer) is not int or layer < 0 for layer in given
            ):
                raise InputError(
                    f"the method decimate with layers = {given!r:.60}: give numbers from 0 on"
                )
            object.__setattr__(self, "layers", tuple(sorted(set(given))))
        if type(self.beta) not in (int, float) or not 0 < self.beta <= 1:
            raise InputError(
                f"the method decimate with beta = {self.beta!r:.60}: give a share above 0, 1 at "
                "most"
            )

    @property
    def has_rule(self) -> bool:
        return True

    @property
    def serves_memory(self) -> bool:
        return True

    def in_words(self) -> str:
        layers = self.layers
        where = "in the middle layer" if layers is None else f"in the layers {list(layers)}"
        return (
            f"The prompt is read once; {where} the document's weakest tokens leave the sequence, "
            f"{self.tokens} stay at most, and {self.beta:g} of that in each layer after the first "
            "(decimate)."
        )

    def check(self, model: Any) -> None:
        count = len(model.backbone.layers)
        if self.layers and self.layers[-1] >= count:
            raise InputError(
                f"the method decimate with layers = {list(self.layers)}: the model's layers are 0 "
                f"to {count - 1}"
            )

    def _rule(self, model: Any, free: Tensor, lengths: Tensor) -> Decimating:
        self.check(model)
        layers = self.layers
        if layers is None:
            layers = (len(model.backbone.layers) // 2,)
        most = {
            layer: max(int(self.tokens * self.beta**i), FEWEST) for i, layer in enumerate(layers)
        }
        return Decimating(most, free, lengths)

    def _read(
        self, model: Any, batch: Batch, free: Tensor, cache: StateCache | None, options: PassOptions
    ) -> Steps[tuple[Tensor, Decimating]]:
        """All states of the last layer, (b, k, d), and the rule that was read by."""
        if options.layers is not None:
            raise InputError(
                "output_hidden_states=True: under the method decimate each layer has another "
                "number of positions; use another method"
            )
        rule, backbone, lengths = self._rule(model, free, batch.lengths), model.backbone, None
        if bool((batch.lengths < batch.width).any()):
            lengths = to_device(batch.lengths, batch.device)
        embeds = batch.embeds_of(backbone.embeddings)(0, batch.width)
        hidden = backbone(embeds, lengths, cache=cache, rule=rule)
        yield batch.rows * batch.width
        return hidden, rule

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        # the prompt's last token stays, as the answer begins from it
        free = torch.minimum(batch.document_lengths, batch.prompt_lengths - 1)
        hidden, rule = yield from self._read(model, batch, free, cache, options)
        left, labels, index = rule.lengths, batch.labels, rule.index()
        if labels is not None and index is not None:
            # answers stand behind the prompt, where nothing leaves
            labels = ignore_pads(labels.gather(1, index), left)
        if options.tail:
            tail = min(options.tail, int(left.max()))
            hidden = cut(hidden, left - tail, tail)
        return Passage(batch, hidden, left, labels, cache)

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        if options.with_stage1:
            raise InputError(
                "with_document_loss=True: under the method decimate tokens of the document leave "
                "the sequence; use another method"
            )
        cache = StateCache(len(model.backbone.layers))
        hidden, _ = yield from self._read(model, documents, documents.lengths, cache, options)
        span, ids = no_span(documents), documents.input_ids
        memory = DocumentMemory(hidden[:, :0], span, documents.lengths, cache, self, input_ids=ids)
        return memory, None

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        states, _ = states_for(questions, memory)
        return (yield from read_plain(model.backbone, questions, states, options))
