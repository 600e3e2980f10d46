"""A backbone's pass over many tokens; short passes on a GPU are replayed as CUDA graphs.

A graph has one shape. Rows of similar length share one: they are padded to the next bucket, and
their real lengths are an input of the graph, so that padding changes no state.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remamba.execution.graphs import Graph
from remamba.execution.watch import Watch
from remamba.model.backbone import Backbone
from remamba.model.layer_rules import LayerRule
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.rows import to_device
from remamba.model.states import StateCache
from remamba.model.time_step import Adaption
from remamba.ops.backend import requested, resolve
from remamba.ops.device import on_device

MOST_TOKENS = 8192
"""Most positions of a captured pass, all rows counted; longer passes are bound by the GPU."""
MOST_BYTES = 2**30
"""Most bytes that the inputs and outputs of a model's graphs may take."""
STEPS = ((512, 64), (2048, 32), (4096, 128), (MOST_TOKENS, 256))
"""(most tokens, step): up to that length, buckets are multiples of the step."""


def bucket(length: int) -> int:
    """The length that rows of up to `length` tokens are padded to.

    Short passes cost what reading the weights costs, padded or not; above 512 tokens rows are
    padded by 6 % at most. The multiples of 128 and 256 above 2,048 are tiles of the products.
    """
    step = next((step for most, step in STEPS if length <= most), STEPS[-1][1])
    return -(-length // step) * step


class Shape(NamedTuple):
    """What two passes must have in common to share a graph."""

    rows: int
    length: int
    dtype: torch.dtype
    has_pads: bool
    """False: every row is as long as the bucket, and no lengths are asked for."""
    exact: bool | None
    """Adaption.exact; None without an adaption."""
    begins: bool
    """True: from zero states."""
    has_cache: bool
    """False: the states are not wanted afterwards."""
    backend: str | None


class Captured:
    """One graph, its static states, and the copies in and out."""

    def __init__(
        self,
        backbone: Backbone,
        shape: Shape,
        inputs: tuple[Tensor, ...],
        cache: StateCache | None,
        beside: Captured | None,
    ):
        """`inputs` and `cache` as in `__call__`; `beside` shares its memory with this graph."""
        self._layers = layers = len(backbone.layers)
        self._states: StateCache | None = None
        if cache is not None and not shape.begins:
            self._states = cache.clone()

        def forward(embeds: Tensor, lengths: Tensor, *adapted: Tensor) -> tuple[Any, ...]:
            states = None
            if shape.has_cache:
                states = StateCache(layers) if self._states is None else self._states.copy()
            adaption = (
                None if shape.exact is None else Adaption(adapted[0], adapted[1], shape.exact)
            )
            hidden = backbone(embeds, lengths if shape.has_pads else None, adaption, states)
            if states is None:
                return (hidden,)
            return (hidden, *states.conv_states, *states.ssm_states)

        self.graph: Graph = Graph(forward, inputs, None if beside is None else beside.graph.pool)
        static = [*self.graph.inputs, *self.graph.outputs]
        if self._states is not None:
            static += [*self._states.conv_states, *self._states.ssm_states]  # type: ignore[list-item]
        self.bytes = sum(x.nbytes for x in static)

    def __call__(self, inputs: tuple[Tensor, ...], cache: StateCache | None) -> Tensor:
        """Last-layer states (b, bucket, d), static; the cache gets states of its own."""
        if self._states is not None:
            assert cache is not None
            torch._foreach_copy_(self._states.conv_states, cache.conv_states)  # type: ignore
            torch._foreach_copy_(self._states.ssm_states, cache.ssm_states)  # type: ignore
        hidden, *states = self.graph(*inputs)
        if cache is not None:
            cache.conv_states = list(torch.stack(states[: self._layers]).unbind())
            cache.ssm_states = list(torch.stack(states[self._layers :]).unbind())
        return hidden


class PrefillGraphs:
    """The graphs of one backbone, captured when a shape is asked for the second time.

    Once they take MOST_BYTES, a graph is replaced only by a shape that was asked for more often.
    Texts that all differ in length would otherwise be captured at every pass.
    """

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._asked: Counter[Shape] = Counter()
        self.captured: OrderedDict[Shape, Captured] = OrderedDict()

    def run(
        self,
        backbone: Backbone,
        embeds: Tensor,
        lengths: Tensor,
        adaption: Adaption | None,
        cache: StateCache | None,
    ) -> Tensor | None:
        """As `run_backbone`, by a graph; None where no graph can serve."""
        if self._watch is None or not self._watch.is_current():
            self._watch, self._asked, self.captured = Watch(backbone), Counter(), OrderedDict()
        watch = self._watch
        if watch.is_observed() or watch.devices != {embeds.device} or not watch.is_known:
            return None
        rows, width = embeds.shape[:2]
        length = bucket(width)
        shape = Shape(
            rows,
            length,
            embeds.dtype,
            bool((lengths < length).any()),
            None if adaption is None else adaption.exact,
            cache is None or not cache.is_filled,
            cache is not None,
            requested(),
        )
        self._asked[shape] += 1
        if shape not in self.captured and not self._is_welcome(shape):
            return None
        # padded by zeros, not by what an earlier text left there: its NaN would enter the states
        pad = length - width
        inputs = (
            F.pad(embeds, (0, 0, 0, pad)),
            to_device(lengths, embeds.device),
            *(F.pad(x, (0, pad)) for x in (adaption or ())[:2]),
        )
        # static tensors are no inference tensors: those could be written to in inference mode only
        with torch.inference_mode(False), torch.no_grad(), on_device(embeds):
            if shape not in self.captured:
                beside = next(iter(self.captured.values()), None)
                self.captured[shape] = Captured(backbone, shape, inputs, cache, beside)
            self.captured.move_to_end(shape)
            hidden = self.captured[shape](inputs, cache)
        return hidden[:, :width].clone()

    def _is_welcome(self, shape: Shape) -> bool:
        """Whether to capture a shape; this may delete the graphs that were used longest ago."""
        if self._asked[shape] < 2:
            return False
        while self.bytes > MOST_BYTES:
            oldest = next(iter(self.captured))
            if self._asked[oldest] >= self._asked[shape]:
                return False
            del self.captured[oldest]
        return True

    @property
    def bytes(self) -> int:
        return sum(captured.bytes for captured in self.captured.values())


_graphs: weakref.WeakKeyDictionary[Backbone, PrefillGraphs] = weakref.WeakKeyDictionary()


def graphs_of(backbone: Backbone) -> PrefillGraphs:
    """The graphs of a backbone's passes, deleted with the backbone."""
    if backbone not in _graphs:
        _graphs[backbone] = PrefillGraphs()
    return _graphs[backbone]


def run_backbone(
    backbone: Backbone,
    embeds: Tensor,
    lengths: Tensor,
    adaption: Adaption | None = None,
    cache: StateCache | None = None,
    every: list[Tensor] | None = None,
    rule: LayerRule | None = None,
) -> Tensor:
    """Last-layer states (b, l, d), as `backbone` itself gives them.

    Args:
        embeds: (b, l, d), right-padded.
        lengths: (b,) real tokens of each row, at most l; on the host.
        adaption: the kept positions of stage 2.
        cache: the pass starts from its states, if it has any, and leaves its own in it.
        every: gets each layer's states, see `Backbone.forward`; no graph is used then.
        rule: what becomes of the time steps; no graph is used then, nor where the states have one.
    """
    rows, width = embeds.shape[:2]
    is_decoding = width == 1 and cache is not None and cache.is_filled
    is_short = not is_decoding and rows * bucket(width) <= MOST_TOKENS
    is_ruled = rule is not None or (cache is not None and cache.rule is not None)
    if is_short and every is None and not is_ruled and can_capture(backbone, embeds):
        hidden = graphs_of(backbone).run(backbone, embeds, lengths, adaption, cache)
        if hidden is not None:
            return hidden
    has_pads = bool((lengths < width).any())
    return backbone(
        embeds,
        to_device(lengths, embeds.device) if has_pads else None,
        adaption,
        cache,
        every,
        rule,
    )


def can_capture(backbone: Backbone, embeds: Tensor) -> bool:
    """Whether a pass over these embeddings is of a kind that a CUDA graph can hold."""
    if embeds.device.type != "cuda" or backbone.training or torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling():
        return False
    # the other forms are loops over steps or chunks, and wait for the device here and there
    scan = "ssd" if isinstance(backbone.layers[0].mixer, Mamba2Mixer) else "selective_scan"
    return embeds.dtype != torch.float64 and resolve(scan, embeds.device) not in ("ref", "torch")
