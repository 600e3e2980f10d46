"""`scale`: every layer's time steps times a factor, in reading and in answering alike.

With `of="steps"` this is MambaExtend (Azizi et al., "MambaExtend: A Training-Free Approach to
Improve Long Context Extension of Mamba", ICLR 2025): Delta becomes s Delta, one s for each layer.
"A" scales the decay alone, A becomes s A; "A_log" is what the release of Mamba Modulation (arXiv
2509.19633) does, A becomes -|A|^s. By h_t = exp(Delta A) h_{t-1} + Delta B x, "steps" is "A" with
the input scaled too. Both releases forget the factor when they decode; here the states keep it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from remamba.errors import InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import Steps
from remamba.methods.base import Passage
from remamba.methods.memory import DocumentMemory
from remamba.methods.plain import no_span, read_documents, read_plain, states_for
from remamba.methods.rule_table import LEAST_FACTOR, MOST_FACTOR, Calibrated
from remamba.model.layer_rules import KINDS, Scaling
from remamba.model.rows import Batch
from remamba.model.states import StateCache


@dataclass(frozen=True)
class Scale(Calibrated):
    """One reading, and the answer behind it, with scaled time steps."""

    name = "scale"
    in_place = ", or one factor for all layers by --factor"

    factor: float | None = None
    """The same factor for every layer, in place of a table."""
    of: str | None = None
    """What is scaled with `factor`: steps (where nothing is said), A or A_log. A table tells it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.factor
        if factor is not None and (
            type(factor) not in (int, float) or not LEAST_FACTOR <= factor <= MOST_FACTOR
        ):
            raise InputError(
                f"the method scale with factor = {factor!r:.60}: give a number from "
                f"{LEAST_FACTOR:g} to {MOST_FACTOR:g}"
            )
        if self.of not in (None, *KINDS):
            raise InputError(
                f"the method scale with of = {self.of!r:.60}: choose one of {', '.join(KINDS)}"
            )
        if self.digest and (factor is not None or self.of is not None):
            raise InputError(
                "the method scale takes its factors from a table, or one factor for all layers: "
                "give either rule, or factor and of"
            )

    def in_words(self) -> str:
        if self.factor is None:
            how = "scaled by a factor for each layer, which a table tells"
        else:
            how = f"scaled by {self.factor:g} ({self.of or KINDS[0]})"
        return f"The prompt is read once and answered with time steps {how} (scale)."

    def goes_on_by(self, model: Any) -> Scaling:
        layers = len(model.backbone.layers)
        if self.factor is not None:
            factors, kind = [float(self.factor)] * layers, self.of or KINDS[0]
        else:
            values = self._table(model).values
            factors, kind = values["factors"], values["of"]
            if len(factors) != layers:
                raise InputError(
                    f"the rule {self.rule} has factors for {len(factors)} layers, and the model "
                    f"has {layers}; run `remamba calibrate` with this model"
                )
        return Scaling(factors, kind)

    def check(self, model: Any) -> None:
        if self.factor is None:
            super().check(model)

    def prefill(
        self, model: Any, batch: Batch, cache: StateCache | None, options: PassOptions
    ) -> Steps[Passage]:
        return (
            yield from read_plain(model.backbone, batch, cache, options, self.goes_on_by(model))
        )

    def read(
        self, model: Any, documents: Batch, options: PassOptions
    ) -> Steps[tuple[DocumentMemory, Tensor | None]]:
        rule, span = self.goes_on_by(model), no_span(documents)
        return (yield from read_documents(model.backbone, documents, span, self, options, rule))

    def answer(
        self, model: Any, questions: Batch, memory: DocumentMemory, options: PassOptions
    ) -> Steps[Passage]:
        states, _ = states_for(questions, memory)  # they know the rule that they go on by
        return (yield from read_plain(model.backbone, questions, states, options))
