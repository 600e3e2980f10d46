"""One more token of every row: the states stay at their place, so that a CUDA graph can hold it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from remamba.execution.graphs import Graph
from remamba.execution.watch import Watch
from remamba.model.layers import RMSNorm, vocabulary_logits
from remamba.model.mamba import MambaMixer
from remamba.model.mamba2 import Mamba2Mixer
from remamba.model.states import StateCache
from remamba.ops.backend import form_for, requested, resolve, run
from remamba.ops.decode_layer.c import MOST_ROWS
from remamba.ops.decode_layer.weights import BlockWeights, Mamba2Weights, MambaWeights
from remamba.ops.device import on_device

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Row counts that are captured; above the last, its multiples."""
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _weights(backbone: Any) -> list[BlockWeights] | None:
    """The blocks' weights as the fused form reads them; None where it cannot."""
    found = [_block_weights(block.norm, block.mixer) for block in backbone.layers]
    for weights in found:
        # what is multiplied or normed is rounded to one dtype; A_log, D and dt_bias may be wider
        like = weights.norm, weights.in_proj, weights.conv, weights.out_proj
        if weights.norm.dtype not in FUSED_DTYPES or len({t.dtype for t in like}) > 1:
            return None
        if not all(t.is_contiguous() for t in weights.tensors()):
            return None
    return found


def _block_weights(norm: RMSNorm, m: MambaMixer | Mamba2Mixer) -> BlockWeights:
    of_both = (
        norm.weight, norm.eps, m.in_proj.weight, m.in_proj.bias, m.conv1d.weight, m.conv1d.bias,
        m.dt_bias if isinstance(m, Mamba2Mixer) else m.dt_proj.bias, m.A_log, m.D,
        m.out_proj.weight, m.out_proj.bias,
    )  # fmt: skip
    if isinstance(m, Mamba2Mixer):
        return Mamba2Weights(*of_both, m.dt_limit, m.norm.weight, m.norm.eps, m.groups)
    return MambaWeights(*of_both, m.x_proj.weight, m.dt_proj.weight, m.norm_eps)


class DecodeStep:
    """A model's step over rows of states that stay where they are; on a GPU a CUDA graph.

    The fused kernels run where they can (`remamba doctor` tells: decode_layer), else the model's
    own modules; both are captured, once for each of a few numbers of rows. Modules with hooks are
    never captured.

    Args:
        model: a ReMambaForCausalLM; it may go away before its step does.
        capacity: rows to hold; `bind` makes room for more, `load` does not.
    """

    def __init__(self, model: Any, capacity: int = 0):
        self._model = weakref.ref(model)
        self.capacity = capacity
        self.conv = self.ssm = torch.empty(0)
        self.tokens = torch.empty(0, dtype=torch.long)
        self._watch: Watch | None = None
        self._blocks: list[BlockWeights] | None = None
        """The weights of the fused form; None where the modules are called."""
        self._is_observed = False
        """Nothing may be captured: hooks wait on modules, the model lies on several devices, or
        weights are quantised, whose libraries wait for the device where they like."""
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._guest: weakref.ref[StateCache] | None = None

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def refresh(self) -> None:
        """Look at the model anew. To be called whenever its weights may have been changed."""
        model = self._owner()
        modules = model.backbone, model.lm_head
        watch = self._watch
        if watch is None or not watch.is_of(*modules) or not watch.is_in_place():
            self._watch = watch = Watch(*modules)
            self._blocks = _weights(model.backbone) if watch.is_known else None
            self._graphs.clear()
        elif not watch.is_known:
            self._graphs.clear()
        is_spread = len(watch.devices) > 1
        self._is_observed = watch.is_observed() or is_spread or not watch.is_plain

    def _owner(self) -> Any:
        model = self._model()
        assert model is not None, "the model is gone"
        return model

    def reserve(self, cache: StateCache) -> None:
        """Make the rows for states such as the cache holds, if that has not been done."""
        conv, ssm = cache.conv_states[0], cache.ssm_states[0]
        assert conv is not None and ssm is not None, "an empty cache"
        layers = len(cache.conv_states)
        shapes = [(layers, self.capacity, *t.shape[1:]) for t in (conv, ssm)]
        if (
            shapes == [self.conv.shape, self.ssm.shape]
            and (conv.dtype, ssm.dtype) == (self.conv.dtype, self.ssm.dtype)
            and conv.device == self.device
        ):
            return
        self._graphs.clear()
        with torch.inference_mode(False):  # plain tensors can be written in either mode
            self.conv = torch.zeros(shapes[0], dtype=conv.dtype, device=conv.device)
            self.ssm = torch.zeros(shapes[1], dtype=ssm.dtype, device=ssm.device)
            self.tokens = torch.zeros(self.capacity, dtype=torch.long, device=conv.device)

    def load(self, cache: StateCache, row: int) -> None:
        """Rows [row, row + b) take the cache's b rows of states; the first rows come first."""
        if row == 0:
            self.reserve(cache)
        stop = row + cache.batch_size
        assert stop <= self.capacity, (stop, self.capacity)
        assert cache.rule is None, "a step in place reads as plain Mamba"
        _write(self.conv[:, row:stop], cache.conv_states)
        _write(self.ssm[:, row:stop], cache.ssm_states)

    def move(self, source: int, target: int) -> None:
        """Row `target` takes the states and the token of row `source`."""
        self.conv[:, target] = self.conv[:, source]
        self.ssm[:, target] = self.ssm[:, source]
        self.tokens[target] = self.tokens[source]

    def run(self, rows: int, then: Callable[[Tensor], Any] | None = None, name: Any = None) -> Any:
        """What `then` makes of the logits (bucket, vocab) behind one more token of the first rows.

        The tokens are those in `tokens`; the states move on. In a graph the result is static: the
        next run overwrites it. Rows up to the bucket's end are computed too and mean nothing.

        Args:
            then: works on tensors only; captured with the step. None: the logits themselves.
            name: stands for what `then` does; two that differ must have different ones.
        """
        if not self._is_current():
            self.refresh()
        bucket = rows
        # on a CPU a row that nobody asked for costs as much as another
        if self.device.type != "cpu" or self.is_captured:
            bucket = next((n for n in BUCKETS if n >= rows), -(-rows // BUCKETS[-1]) * BUCKETS[-1])
            bucket = min(bucket, self.capacity)

        def step() -> Any:
            logits = self._logits(bucket)
            return logits if then is None else then(logits)

        with on_device(self.tokens):
            if not self.is_captured:
                return step()
            key = (bucket, name, requested())
            if key not in self._graphs:
                self._graphs[key] = self._capture(step, bucket)
            return self._graphs[key]()

    @property
    def is_captured(self) -> bool:
        """Whether steps are CUDA graphs."""
        return self.device.type == "cuda" and not self._is_observed

    def _is_current(self) -> bool:
        model, watch = self._owner(), self._watch
        return (
            watch is not None
            and watch.is_of(model.backbone, model.lm_head)
            and watch.is_in_place_at_a_glance()
        )

    def _capture(self, step: Callable[[], Any], rows: int) -> Graph:
        """The step as a graph; what its warm-up did to states and tokens is undone."""
        moving = (self.conv[:, :rows], self.ssm[:, :rows], self.tokens[:rows])
        before = [tensor.clone() for tensor in moving]
        pool = next(iter(self._graphs.values())).pool if self._graphs else None
        graph = Graph(step, pool=pool)
        for tensor, old in zip(moving, before, strict=True):
            tensor.copy_(old)
        return graph

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels run, for as many rows as they take."""
        return self._is_fused_for(1)

    def _is_fused_for(self, rows: int) -> bool:
        if self._blocks is None or self._is_observed:
            return False
        if self.device.type == "cpu" and (self._watch is None or self._watch.is_observed()):
            return False  # hooks of this moment: nothing is captured, so they are still heard
        model = self._owner()
        norm = model.backbone.norm_f
        arguments = (
            self._blocks, None, self.conv[:, :rows], self.ssm[:, :rows], norm.weight, norm.eps,
            model.lm_head.weight,
        )  # fmt: skip
        return form_for("decode_layer", self.device, *arguments)[0] not in ("ref", "torch")

    def _logits(self, rows: int) -> Tensor:
        """(rows, vocab) behind one more token; the states move on in place."""
        model = self._owner()
        backbone, lm_head, tokens = model.backbone, model.lm_head, self.tokens[:rows]
        conv, ssm = self.conv[:, :rows], self.ssm[:, :rows]
        if self._is_fused_for(rows):
            residual = backbone.embeddings(tokens)
            if backbone.layers[0].residual_in_fp32:
                residual = residual.float()
            norm = backbone.norm_f
            return run(
                "decode_layer", self.device, self._blocks, residual, conv.unbind(), ssm.unbind(),
                norm.weight, norm.eps, lm_head.weight,
            )  # fmt: skip
        cache = StateCache(len(conv))
        cache.conv_states, cache.ssm_states = [*conv.unbind()], [*ssm.unbind()]
        hidden = backbone(backbone.embeddings(tokens.unsqueeze(1)), cache=cache)
        _write(conv, cache.conv_states)
        _write(ssm, cache.ssm_states)
        return vocabulary_logits(lm_head, hidden[:, 0])

    def bind(self, cache: StateCache) -> None:
        """Let the cache live here: its states are these rows, until someone looks at them."""
        if cache.is_at(self):
            return
        self.release()
        self.refresh()
        self.capacity = max(self.capacity, cache.batch_size)
        self.load(cache, 0)
        cache.move_in(self)
        self._guest = weakref.ref(cache)

    def release(self) -> None:
        """The bound cache takes its states with it."""
        cache = None if self._guest is None else self._guest()
        self._guest = None
        if cache is not None and cache.is_at(self):
            cache.move_out()

    def states(self, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of the first rows' states, layer by layer."""
        return [t[:rows].clone() for t in self.conv], [t[:rows].clone() for t in self.ssm]

    def logits(self, tokens: Tensor, cache: StateCache) -> Tensor:
        """Logits (b, vocab) behind one more token (b,) of each row of a filled cache."""
        self.bind(cache)
        rows = len(tokens)
        self.tokens[:rows] = tokens
        return self.run(rows)[:rows].clone()


def _write(static: Tensor, states: list[Tensor | None]) -> None:
    """The layers' states into their places in (layers, b, ...)."""
    assert all(state is not None for state in states), "an empty cache"
    torch._foreach_copy_(static.unbind(), states)  # type: ignore[arg-type]


_steps: weakref.WeakKeyDictionary[nn.Module, DecodeStep] = weakref.WeakKeyDictionary()


def decode_step_of(model: nn.Module) -> DecodeStep:
    """The one step that a model's own forward runs; it goes with the model."""
    if model not in _steps:
        _steps[model] = DecodeStep(model)
    return _steps[model]


def runs_in_place(model: Any, rows: int = 1) -> bool:
    """Whether a decode step of so many rows gains from states that stay at their place.

    It does on one GPU, and on a CPU for the few rows that its fused form takes.
    """
    devices = getattr(model, "hf_device_map", None) or {}
    if len(set(devices.values())) > 1:
        return False
    if model.device.type == "cpu":
        return rows <= MOST_ROWS and resolve("decode_layer", model.device) == "c"
    return model.device.type == "cuda"


def decodes_in_place(
    model: Any, input_ids: Tensor | None, cache: StateCache | None, *others: Any
) -> bool:
    """Whether a forward is one more token of each row and nothing else, and can run in place.

    Args:
        others: what else the forward was given; None each, if this is to hold.
    """
    if input_ids is None or cache is None or any(other is not None for other in others):
        return False
    if input_ids.dim() != 2 or input_ids.shape[1] != 1 or not cache.is_filled:
        return False
    if cache.text is not None:  # its pending token is read first
        return False
    if cache.rule is not None:  # the captured step and the fused kernels know none
        return False
    if model.training or torch.is_grad_enabled() or not runs_in_place(model, len(input_ids)):
        return False
    return not (
        torch.is_autocast_enabled(model.device.type)
        or torch.compiler.is_compiling()
        or (input_ids.is_cuda and torch.cuda.is_current_stream_capturing())
    )
