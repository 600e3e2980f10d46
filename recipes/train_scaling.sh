#!/usr/bin/env bash
# How training scales: the same steps of a random mamba-130m on one GPU, and on GPUS of them under
# DDP and FSDP2; losses are compared, tokens a second and memory reported.
#
#   GPUS=2 recipes/train_scaling.sh
#
# GPUS    how many (default: 2)
# OUT     folder for data and runs (default: a new temporary one)
# PYTHON  interpreter with remamba[train] (default: python)
# STEPS, TOKENS, BATCH, LAYERS, HIDDEN   sizes (default: 30, 2000, 16, 24, 768)
#
# Nothing is downloaded: tokenizer and prose are those of this repository. BATCH documents a step in
# all cases, so that one GPU and many do the same work.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GPUS=${GPUS:-2} PYTHON=${PYTHON:-python}
OUT=${OUT:-$(mktemp -d)}
STEPS=${STEPS:-30} TOKENS=${TOKENS:-2000} BATCH=${BATCH:-16}
LAYERS=${LAYERS:-24} HIDDEN=${HIDDEN:-768}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
tokenizer=$root/remamba/assets/remamba-tiny

"$PYTHON" - "$OUT/random" "$HIDDEN" "$LAYERS" <<'PY'
import sys

import torch
from transformers import MambaConfig, MambaForCausalLM

torch.manual_seed(0)
size = {"hidden_size": int(sys.argv[2]), "num_hidden_layers": int(sys.argv[3])}
MambaForCausalLM(MambaConfig(vocab_size=50280, **size)).save_pretrained(sys.argv[1])
PY
"$PYTHON" -m remamba.cli convert "$OUT/random" "$OUT/base" --tokenizer "$tokenizer"
"$PYTHON" -m remamba.cli data build planted --books "$root/examples/demo_document.txt" \
  --output "$OUT/facts.jsonl" --documents 256 --tokens "$TOKENS" "$TOKENS" --questions 2 \
  --tokenizer "$tokenizer"

options=(train --base "$OUT/base" --data "$OUT/facts.jsonl" --max-steps "$STEPS"
  --batch-size "$BATCH" --questions-per-document 1 --learning-rate 1e-4 --warmup-steps 5
  --logging-steps 5 --save-steps 0 --no-check-gradients --length 0.1 0.3 --keep-ratio 0.05 0.2)

"$PYTHON" -m remamba.cli "${options[@]}" --output "$OUT/one"
for kind in ddp fsdp2; do
  "$PYTHON" -m accelerate.commands.launch --config_file "$root/recipes/accelerate_$kind.yaml" \
    --num_processes "$GPUS" -m remamba.cli "${options[@]}" --output "$OUT/$kind"
done

"$PYTHON" - "$OUT" "$GPUS" <<'PY'
import json
import sys
from pathlib import Path

logs = {}
for name in ("one", "ddp", "fsdp2"):
    text = (Path(sys.argv[1]) / name / "log.jsonl").read_text()
    logs[name] = [json.loads(line) for line in text.splitlines()]
print(f"{'run':6} {'tokens/s':>10} {'times one':>10} {'GiB a GPU':>10} {'loss':>8} {'off by':>9}")
speeds = {}
for name, lines in logs.items():
    # the first steps compile and warm up
    steady = sorted(line["tokens_per_second"] for line in lines[2:])
    speeds[name] = steady[len(steady) // 2]
    off = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(lines, logs["one"]))
    print(
        f"{name:6} {speeds[name]:10,} {speeds[name] / speeds['one']:10.2f} "
        f"{lines[-1]['memory_gib']:10.2f} {lines[-1]['loss']:8.4f} {off:9.1e}"
    )
PY
