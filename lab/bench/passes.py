"""The runs that are timed: prefill, decoding by the engine, by `generate` and by forced steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.bench.ceilings import Work
from lab.bench.measure import Sample, synchronize
from remamba.bare_model import Compression
from remamba.compression_config import CompressionConfig
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.modeling_remamba import ReMambaForCausalLM


def random_ids(vocab_size: int, batch: int, length: int, device: str) -> Tensor:
    """(b, l) random tokens, none of them the end of a text."""
    return torch.randint(1, vocab_size, (batch, length), device=device)


def prefill(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    """The pass over a prompt, into a new cache, with the last token's logits."""
    return model(ids, use_cache=True, logits_to_keep=1, **options)


def decode_forced(model: nn.Module, cache: Any, ids: Tensor) -> None:
    """Forced steps along ids (b, steps), from the cache and into it."""
    for step in ids.split(1, dim=1):
        model(step, cache_params=cache, use_cache=True, logits_to_keep=1)


def run_engine(
    engine: Engine, prompts: Sequence[list[int]], new_tokens: int, compression: Compression
) -> Sample:
    """`new_tokens` greedy tokens behind each prompt, one slot each.

    All requests end with the same step, so what lies behind the last one's first token is the
    decoding, and the rest the time to the first token.
    """
    device = str(engine.model.device)
    options = SamplingOptions(max_new_tokens=new_tokens, ignore_eos=True)
    requests = [Request(prompt=p, options=options, compression=compression) for p in prompts]
    synchronize(device)
    start = time.perf_counter()
    completions = engine.run(requests)
    synchronize(device)
    total = time.perf_counter() - start
    assert all(len(c.token_ids) == new_tokens for c in completions)
    decode = min(c.seconds["decode"] for c in completions)
    return Sample(decode, first=total - decode)


def run_generate(model: Any, ids: Tensor, new_tokens: int, **options: Any) -> Sample:
    """`new_tokens` greedy tokens by transformers' generate; the model knows no end of text."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class FirstToken(StoppingCriteria):
        """Notes when the first token is there, and never stops."""

        def __init__(self) -> None:
            self.never = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            self.at = 0.0

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore
            if not self.at:
                synchronize(str(ids.device))
                self.at = time.perf_counter()
            return self.never

    first = FirstToken()
    synchronize(str(ids.device))
    start = time.perf_counter()
    tokens = model.generate(
        ids,
        max_new_tokens=new_tokens,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([first]),
        **options,
    )
    synchronize(str(ids.device))
    stop = time.perf_counter()
    assert tokens.shape[1] - new_tokens in (0, ids.shape[1]), tokens.shape
    return Sample(stop - first.at, first=first.at - start)


def run_mamba_ssm(model: Any, ids: Tensor, new_tokens: int) -> Sample:
    """The same by mamba_ssm's generate, its decode step a CUDA graph."""
    device, length = str(ids.device), ids.shape[1]

    def run(tokens: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        model.generate(ids, max_length=length + tokens, cg=True, top_k=1)
        synchronize(device)
        return time.perf_counter() - start

    first = run(1)
    return Sample(run(new_tokens) - first, first=first)


def with_mambapy(model: nn.Module, run: Callable[[], Any]) -> Any:
    """`run()` with transformers' mixers taking the parallel scan of mambapy."""
    mixers: list[Any] = [m for m in model.modules() if hasattr(m, "use_mambapy")]
    for mixer in mixers:
        mixer.use_mambapy = True
    try:
        return run()
    finally:
        for mixer in mixers:
            mixer.use_mambapy = False


def projections(ours: ReMambaForCausalLM) -> list[nn.Linear]:
    """Every projection of every layer, in the order of a pass."""
    return [m for m in ours.backbone.layers.modules() if isinstance(m, nn.Linear)]


def products(ours: ReMambaForCausalLM, batch: int, length: int) -> Callable[[], None]:
    """F.linear of every projection on random inputs, and the head on the last token."""
    linears, head = projections(ours), ours.lm_head
    inputs = {
        width: torch.randn(batch, length, width, device=ours.device, dtype=ours.dtype)
        for width in {linear.in_features for linear in (*linears, head)}
    }
    return partial(_run_products, linears, head, inputs)


def _run_products(linears: list[nn.Linear], head: nn.Linear, inputs: dict[int, Tensor]) -> None:
    for linear in linears:
        F.linear(inputs[linear.in_features], linear.weight, linear.bias)
    F.linear(inputs[head.in_features][:, -1:], head.weight)


def spans(length: int) -> tuple[int, int]:
    """(m, k) of a prompt with the paper's settings."""
    settings = CompressionConfig()
    assert settings.keep_ratio is not None
    m = max(-int(-settings.length * length // 1), 1)
    return m, max(-int(-settings.keep_ratio * m // 1), 1)


def prefill_work(ours: ReMambaForCausalLM, batch: int, length: int, who: str) -> Work:
    """A prefill's products, both stages' if there are two; the weights are read at least once."""
    weights = sum(linear.weight.numel() for linear in projections(ours))
    head = ours.lm_head.weight.numel()
    tokens = length
    if who == "two-stages":
        m, k = spans(length)
        tokens += length - m + k
    size = ours.lm_head.weight.element_size()
    return Work((weights + head) * size, 2 * batch * (weights * tokens + head))


def decode_work(ours: ReMambaForCausalLM, batch: int) -> Work:
    """A decode step: every weight read once, every state read and written."""
    config = ours.config
    weights = sum(p.numel() * p.element_size() for p in ours.backbone.parameters())
    state = config.intermediate_size * config.state_size * 4
    states = 2 * batch * config.num_hidden_layers * state
    flops = 2 * batch * (ours.lm_head.weight.numel() + sum(
        linear.weight.numel() for linear in projections(ours)
    ))  # fmt: skip
    return Work(weights + states, flops)
