"""Published shapes with random weights: our model, and its peers on the very same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lab.bench.measure import free_bytes
from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import quiet_transformers


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model."""

    kind: str
    """mamba | mamba2 | llama."""
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int = 0
    """Of a Llama; a Mamba's is twice its hidden size."""
    num_heads: int = 0
    """Of a Llama; a Mamba-2's heads have 64 channels each."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of a configuration."""
        names = ("hidden_size", "num_hidden_layers", "vocab_size")
        sizes = {name: getattr(self, name) for name in names}
        if self.kind == "llama":
            return {
                **sizes,
                "intermediate_size": self.intermediate_size,
                "num_attention_heads": self.num_heads,
                "num_key_value_heads": self.num_heads,
            }
        if self.kind == "mamba2":
            heads = self.hidden_size * 2 // 64
            return {**sizes, "state_size": 128, "head_dim": 64, "num_heads": heads, "n_groups": 1}
        return {**sizes, "state_size": 16}

    @property
    def parameters(self) -> int:
        """Roughly how many there are."""
        d = self.hidden_size
        if self.kind == "llama":
            layer = 4 * d * d + 3 * d * self.intermediate_size
            return self.num_hidden_layers * layer + 2 * self.vocab_size * d
        # in_proj, out_proj and the compressor, then the embeddings
        return d * d * (7 * self.num_hidden_layers + 6) + self.vocab_size * d


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
    "llama-tiny": Shape("llama", 64, 2, 512, 176, 4),
    # OpenLLaMA-3B
    "llama-3b": Shape("llama", 3200, 26, 32000, 8640, 32),
}


def check_names(names: Sequence[str], kinds: Sequence[str] = ("mamba", "mamba2")) -> None:
    """Raise InputError for a shape that is unknown or of no use here."""
    known = [name for name, shape in SHAPES.items() if shape.kind in kinds]
    for name in names:
        if name not in known:
            raise InputError(f"--shapes {name} is unknown here; there are {', '.join(known)}")


def _check_memory(shape: Shape, device: str, dtype: str, made_in: str) -> None:
    size = {"float32": 4, "bfloat16": 2, "float16": 2}
    need = shape.parameters * (size[dtype] + (size[made_in] if made_in != dtype else 0))
    free = free_bytes(device)
    if need > 0.9 * free:
        raise InputError(
            f"the weights need about {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on "
            f"{device}; leave out the largest shapes"
        )


@torch.no_grad()
def build(shape: Shape, device: str, dtype: str) -> ReMambaForCausalLM:
    """Our model with random weights, made on the device; it knows no end-of-text token.

    Raises:
        InputError: there is not enough memory for it.
    """
    _check_memory(shape, device, dtype, "float32")
    config = ReMambaConfig(backbone_type=shape.kind, eos_token_id=None, **shape.sizes)
    with torch.device(device):
        model = ReMambaForCausalLM(config)
    # a bias of zeros or a norm of ones would hide a mistake from the check
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def build_transformers(shape: Shape, ours: ReMambaForCausalLM) -> nn.Module:
    """transformers' model on our weights; it shares their storage."""
    import transformers

    with quiet_transformers(), torch.device("meta"):
        if shape.kind == "mamba":
            model: Any = transformers.MambaForCausalLM(
                transformers.MambaConfig(**shape.sizes, tie_word_embeddings=True)
            )
        else:
            model = transformers.Mamba2ForCausalLM(
                transformers.Mamba2Config(**shape.sizes, tie_word_embeddings=True)
            )
    model.load_state_dict(_shared(ours), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def has_mamba_ssm() -> bool:
    return find_spec("mamba_ssm") is not None


def build_mamba_ssm(shape: Shape, ours: ReMambaForCausalLM) -> nn.Module:
    """mamba_ssm's model on a copy of our weights."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    layer = "Mamba1" if shape.kind == "mamba" else "Mamba2"
    config = MambaConfig(
        d_model=shape.hidden_size,
        n_layer=shape.num_hidden_layers,
        vocab_size=shape.vocab_size,
        ssm_cfg={"layer": layer},
        rms_norm=True,
        residual_in_fp32=True,
        fused_add_norm=True,
    )
    model = MambaLMHeadModel(config, device=ours.device, dtype=ours.dtype)
    renamed = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor
        for name, tensor in _shared(ours).items()
    }
    model.load_state_dict(renamed, strict=True)
    return model.eval().requires_grad_(False)


def _shared(ours: ReMambaForCausalLM) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith("compressor.") and not name.endswith("adaption.theta")
    }


@torch.no_grad()
def build_llama(shape: Shape, device: str, dtype: str) -> Any:
    """transformers' Llama with random weights of small spread, made on the device."""
    import transformers

    _check_memory(shape, device, dtype, "float32")
    config = transformers.LlamaConfig(
        **shape.sizes, max_position_embeddings=2**15, eos_token_id=None, tie_word_embeddings=False
    )
    config._attn_implementation = "sdpa"
    with quiet_transformers(), torch.device(device):
        model: Any = transformers.LlamaForCausalLM(config)
    model = model.to(getattr(torch, dtype))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def peer_bytes(shape: Shape, batch: int, length: int, mambapy: bool = False) -> int:
    """What transformers' torch path holds at once over a prompt, in one layer, roughly."""
    e, tokens = 2 * shape.hidden_size, batch * length
    if shape.kind == "mamba":  # decays and inputs of every step; the parallel scan keeps copies
        return tokens * e * 16 * 4 * (8 if mambapy else 4)
    heads, chunk = e // 64, 256  # a chunk's decays and scores, B and C repeated for each head
    return -(-length // chunk) * chunk * batch * heads * (chunk * 5 + 128 * 6) * 4
