"""`filter`: in channels that forget slowly, weak tokens of a long document leave the state alone.

This is LongMamba's token filtering (Ye et al., "LongMamba: Enhancing Mamba's Long-Context
Capabilities via Training-Free Receptive Field Enlargement", arXiv 2504.16053). A channel is global
where its decay over the trained length, P = exp(max_n A_n sum_t Delta_t), is above a bound. In a
document of l tokens, Delta_t of a global channel becomes 0 where Delta_t <= theta(l): the sum of
what is left is then about what the channel has seen in training. `methods/calibration.py` makes the
thresholds. A prompt's question is left alone, and decoding is plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import no_span, read_documents, read_plain, states_for
from remamba.methods.rule_table import Calibrated, RuleTable
from remamba.model.layer_rules import Filtering
from remamba.model.rows import Batch
from remamba.model.states import StateCache


@dataclass(frozen=True)
class Filter(Calibrated):
    """Weak tokens of the document do not enter the channels that forget slowly."""

    name = "filter"

    def in_words(self) -> str:
        return (
            "The prompt is read once; in channels that forget slowly, weak tokens of a long "
            "document leave the state alone (filter)."
        )

    def _rule(self, model: Any, documents: Tensor) -> Filtering | None:
        """The rule for documents of so many tokens (b,); None where all are short."""
        table = self._table(model)
        _check_limit(model)
        if bool((documents < table.values["from_tokens"]).all()):
            return None
        return Filtering(_row_thresholds(table, documents), documents)

    def check(self, model: Any) -> None:
        super().check(model)
        _check_limit(model)

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        rule = self._rule(model, batch.document_lengths)
        return (yield from read_plain(model.backbone, batch, cache, options, rule))

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        rule = self._rule(model, documents.lengths)
        span = no_span(documents)
        return (yield from read_documents(model.backbone, documents, span, self, options, rule))

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        states, _ = states_for(questions, memory)
        return (yield from read_plain(model.backbone, questions, states, options))


def _check_limit(model: Any) -> None:
    low = model.config.dt_limit[0]
    if model.config.backbone_type == "mamba2" and low > 0:
        raise InputError(
            f"the method filter sets time steps to 0, and this model's time_step_limit holds them "
            f"at {low:g} and above; use another method"
        )


def _row_thresholds(table: RuleTable, documents: Tensor) -> list[Tensor | None]:
    """Of each layer (b, c): those of the calibrated length nearest to each document's."""
    lengths = torch.tensor(table.values["lengths"])
    nearest = (documents[:, None] - lengths).abs().argmin(dim=1)
    is_short = (documents < table.values["from_tokens"])[:, None]
    return [
        None if dense is None else dense[nearest].masked_fill(is_short, -1.0)
        for dense in table.thresholds
    ]
