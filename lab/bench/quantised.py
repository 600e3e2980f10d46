"""Bytes and error of quantised weights: `python -m lab.bench.quantised` prints a table, on the CPU.

The model has the sizes of mamba-130m with a head of its own, and random weights: the errors tell
what rounding does to such matrices and nothing of answers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from remamba import ReMambaConfig, ReMambaForCausalLM
from remamba.model.layers import is_plain
from remamba.pretrained import quiet_transformers
from remamba.quantised import stored

TOKENS = 256
GROUP = 32


def configurations() -> dict[str, Callable[[], Any]]:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import BitsAndBytesConfig, TorchAoConfig

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    grouped = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))  # type: ignore[attr-defined]
    return {
        "bitsandbytes, 4 bits (nf4)": lambda: BitsAndBytesConfig(**nf4),
        "the same, scales in 8 bits": lambda: BitsAndBytesConfig(
            **nf4, bnb_4bit_use_double_quant=True
        ),
        "bitsandbytes, 8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "torchao, 8 bits": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        f"torchao, 4 bits a byte, groups of {GROUP}": lambda: TorchAoConfig(grouped),
    }


def numbers(module: nn.Linear) -> Tensor:
    """(out, in) float32: what a quantised weight stands for."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight: Any = module.weight
    if hasattr(weight, "__tensor_flatten__"):
        return weight.dequantize().float()
    return dequantize_bnb_weight(weight, getattr(module, "state", None)).float()


def size(tensors: Any) -> float:
    """Million bytes."""
    return sum(t.nbytes for t in tensors) / 1e6


@torch.no_grad()
def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--backbone", default="mamba", choices=("mamba", "mamba2", "falcon_mamba"))
    words.add_argument("--layers", type=int, default=24)
    asked = words.parse_args()
    torch.manual_seed(0)
    config = ReMambaConfig(
        backbone_type=asked.backbone,
        vocab_size=50280,
        hidden_size=768,
        num_hidden_layers=asked.layers,
        tie_word_embeddings=False,
    )
    plain: Any = ReMambaForCausalLM(config).eval()
    ids = torch.randint(50280, (1, TOKENS))
    wanted = plain(ids, compression=False).logits
    scale = wanted.abs().max()
    print(f"float32: {size(plain.parameters()):.1f} MB, bfloat16: half of it")
    print("| weights | MB | error against float32 | against the dequantised weights |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        plain.save_pretrained(folder)
        for name, make in configurations().items():
            model: Any = ReMambaForCausalLM.from_pretrained(
                folder, quantization_config=make(), dtype=torch.float32
            ).eval()
            found = model(ids, compression=False).logits
            plain.load_state_dict(
                {
                    f"{n}.weight": numbers(m)
                    for n, m in model.named_modules()
                    if isinstance(m, nn.Linear) and not is_plain(m.weight)
                },
                strict=False,
            )
            own = plain(ids, compression=False).logits
            errors = [float((found - y).abs().max() / scale) for y in (wanted, own)]
            held = size(stored(model).values())
            print(f"| {name} | {held:.1f} | {errors[0]:.1e} | {errors[1]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
