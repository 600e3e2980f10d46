"""A model's weights in half the bytes, with config and tokenizer: what the evidence keeps of a run.

python -m lab.evidence.keep SOURCE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from remamba.files import make_directory, whole_file, write_whole

COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


def keep(source: Path, target: Path) -> None:
    """Writes `source`'s model to `target` in bfloat16; the weights come last and tell that all is
    there."""
    make_directory(target)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config = {**json.loads((source / "config.json").read_text()), "dtype": "bfloat16"}
    write_whole(target / "config.json", json.dumps(config, indent=2) + "\n")
    weights = load_file(source / "model.safetensors")
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    with whole_file(target / "model.safetensors") as part:
        save_file(weights, part, metadata={"format": "pt"})


if __name__ == "__main__":
    keep(*map(Path, sys.argv[1:]))
