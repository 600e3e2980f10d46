"""What is compared: remamba and transformers on shared weights, and the bare matrix products."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from measure import free_bytes, progress
from torch import Tensor, nn

from remamba import CompressionConfig, ReMambaConfig, ReMambaForCausalLM
from remamba.errors import InputError


def shapes_parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, begun with --shapes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["mamba-130m", "mamba2-130m"],
        metavar="SHAPE", help=f"of {', '.join(SHAPES)} (default: the two 130m)")  # fmt: skip
    return parser


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model."""

    kind: str
    """mamba | mamba2."""
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int

    @property
    def sizes(self) -> dict[str, int]:
        names = ("hidden_size", "num_hidden_layers", "vocab_size")
        sizes = {name: getattr(self, name) for name in names}
        if self.kind == "mamba2":
            heads = self.hidden_size * 2 // 64
            return {**sizes, "state_size": 128, "head_dim": 64, "num_heads": heads, "n_groups": 1}
        return {**sizes, "state_size": 16}


SHAPES = {
    "mamba-tiny": Shape("mamba", 64, 2, 512),
    "mamba-130m": Shape("mamba", 768, 24, 50280),
    "mamba-370m": Shape("mamba", 1024, 48, 50280),
    "mamba-790m": Shape("mamba", 1536, 48, 50280),
    "mamba-1.4b": Shape("mamba", 2048, 48, 50280),
    "mamba-2.8b": Shape("mamba", 2560, 64, 50280),
    "mamba2-tiny": Shape("mamba2", 64, 2, 512),
    "mamba2-130m": Shape("mamba2", 768, 24, 50288),
    "mamba2-370m": Shape("mamba2", 1024, 48, 50288),
    "mamba2-780m": Shape("mamba2", 1536, 48, 50288),
    "mamba2-1.3b": Shape("mamba2", 2048, 48, 50288),
    "mamba2-2.7b": Shape("mamba2", 2560, 64, 50288),
}
PEERS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
    "mamba2": (transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
}

# largest difference of logits over the largest logit
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
CHECK_LENGTH, CHECK_STEPS = 131, 3
DECODE_PROMPT = 64


class WrongLogits(Exception):
    """The contenders do not compute the same, so their speeds mean nothing."""


def build(shape: Shape, device: str, dtype: str, seed: int) -> tuple[ReMambaForCausalLM, nn.Module]:
    """Both models on one set of random weights; they share its storage."""
    # in_proj, out_proj and the compressor, then the embeddings
    parameters = shape.hidden_size**2 * (7 * shape.num_hidden_layers + 6)
    parameters += shape.vocab_size * shape.hidden_size
    # made in float32, then converted
    need = parameters * (4 if dtype == "float32" else 6)
    free = free_bytes(device)
    if need > 0.9 * free:
        raise InputError(
            f"the weights need about {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on "
            f"{device}; leave out the largest shapes"
        )
    torch.manual_seed(seed)
    with torch.device(device):
        ours = ReMambaForCausalLM(ReMambaConfig(backbone_type=shape.kind, **shape.sizes))
    with torch.no_grad():
        # a bias of zeros or a norm of ones would hide a mistake from the check
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ours.to(getattr(torch, dtype)).eval().requires_grad_(False)
    configuration, model = PEERS[shape.kind]
    with torch.device("meta"):
        theirs = model(configuration(**shape.sizes, tie_word_embeddings=True))
    shared = {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith("compressor.") and not name.endswith("adaption.theta")
    }
    theirs.load_state_dict(shared, strict=True, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def projections(ours: ReMambaForCausalLM) -> list[nn.Linear]:
    """Every projection of every layer, in the order of a pass."""
    return [m for m in ours.backbone.layers.modules() if isinstance(m, nn.Linear)]


def run_products(linears: list[nn.Linear], head: nn.Linear, inputs: dict[int, Tensor]) -> None:
    """The matrix products of a pass; inputs (b, l, width) by width."""
    for linear in linears:
        F.linear(inputs[linear.in_features], linear.weight, linear.bias)
    F.linear(inputs[head.in_features][:, -1:], head.weight)


def products(ours: ReMambaForCausalLM, batch: int, length: int) -> Callable[[], None]:
    linears, weight = projections(ours), ours.lm_head.weight
    widths = {linear.in_features for linear in linears} | {ours.lm_head.in_features}
    inputs = {
        width: torch.randn(batch, length, width, device=weight.device, dtype=weight.dtype)
        for width in widths
    }
    return partial(run_products, linears, ours.lm_head, inputs)


def prefill(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    """The pass over a prompt, into a new cache, with the last token's logits."""
    return model(ids, use_cache=True, logits_to_keep=1, **options)


def with_mambapy(model: nn.Module, ids: Tensor) -> Any:
    mixers = [module for module in model.modules() if hasattr(module, "use_mambapy")]
    for mixer in mixers:
        mixer.use_mambapy = True
    try:
        return prefill(model, ids)
    finally:
        for mixer in mixers:
            mixer.use_mambapy = False


def decode(model: nn.Module, cache: Any, ids: Tensor) -> None:
    """Forced steps along ids (b, steps), from the cache and into it."""
    for step in ids.split(1, dim=1):
        model(step, cache_params=cache, use_cache=True, logits_to_keep=1)


def check(
    ours: ReMambaForCausalLM, theirs: nn.Module, ids: Tensor, limit: float
) -> list[dict[str, Any]]:
    """Relative errors of our logits to transformers'; raises WrongLogits above the limit."""
    found = []
    for name, a, b in _pairs(ours, theirs, ids):
        error = float((a - b).abs().max() / b.abs().max())
        found.append({"what": name, "relative_error": error, "limit": limit})
        progress(f"check: {name}: relative error {error:.1e}")
        if not error < limit:
            raise WrongLogits(
                f"{name}: remamba's logits differ from transformers' by {error:.1e} of the largest "
                f"(limit {limit:g}): no speed is told"
            )
    return found


def _pairs(
    ours: ReMambaForCausalLM, theirs: nn.Module, ids: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, our logits, transformers' logits), float32."""
    prompt, answer = ids[:, :-CHECK_STEPS], ids[:, -CHECK_STEPS:]
    a = ours(prompt, compression=False, use_cache=True)
    b = theirs(prompt, use_cache=True)
    yield f"prefill of {prompt.shape[1]} tokens", a.logits.float(), b.logits.float()
    steps = []
    for step in answer.split(1, dim=1):
        pair = (ours(step, cache_params=a.cache_params), theirs(step, cache_params=b.cache_params))
        steps.append([out.logits.float() for out in pair])
    mine, peers = (torch.cat(logits, dim=1) for logits in zip(*steps, strict=True))
    yield f"{CHECK_STEPS} decode steps", mine, peers
    # the adaption enters the time step, which transformers cannot do: without it, stage 2 is a
    # plain pass over the kept vectors and what stands behind the span
    settings = CompressionConfig(adaption="none", num_kept=3)
    out = prefill(ours, prompt, compression=settings)
    behind = theirs.get_input_embeddings()(prompt[:, int(prompt.shape[1] * settings.length + 1) :])
    spliced = torch.cat([out.kept.values.to(behind.dtype), behind], dim=1)
    peer = theirs(inputs_embeds=spliced, logits_to_keep=1).logits
    yield "stage 2 without adaption", out.logits.float(), peer.float()


def peer_bytes(shape: Shape, batch: int, length: int, mambapy: bool) -> int:
    """What transformers' torch path holds at once over a prompt, in one layer, roughly."""
    e, tokens = 2 * shape.hidden_size, batch * length
    if shape.kind == "mamba":  # decays and inputs of every step; the parallel scan keeps copies
        return tokens * e * 16 * 4 * (8 if mambapy else 4)
    heads, chunk = e // 64, 256  # a chunk's decays and scores, B and C repeated for each head
    return -(-length // chunk) * chunk * batch * heads * (chunk * 5 + 128 * 6) * 4
