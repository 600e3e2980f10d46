#!/usr/bin/env bash
# The whole way on a laptop: a random Mamba, converted, trained by both methods, killed and resumed,
# merged and evaluated. It shows that everything works; a model of two layers learns nothing here.
#
#   recipes/smoke_cpu.sh
#
# OUT     folder for data, models and scores (default: a new temporary one)
# PYTHON  interpreter with remamba[train] (default: .venv/bin/python, or python)
# STEPS   optimizer steps of each run (default: 40)
#
# Nothing is downloaded: tokenizer and prose are those of this repository.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$(mktemp -d)}
STEPS=${STEPS:-40}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  if [[ -x $root/.venv/bin/python ]]; then PYTHON=$root/.venv/bin/python; fi
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_VISIBLE_DEVICES="" HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
tokenizer=$root/remamba/assets/remamba-tiny

remamba() { "$PYTHON" -m remamba.cli "$@"; }
step() { echo "== $* ($SECONDS s)" >&2; }
fail() {
  echo "smoke_cpu.sh: $*" >&2
  exit 1
}

if [[ -e $OUT/base ]]; then fail "$OUT holds an earlier run; give another OUT"; fi
mkdir -p "$OUT/prose"

step "a random Mamba of two layers, as transformers stores it"
"$PYTHON" - "$OUT/random" "$tokenizer" <<'PY'
import sys

import torch
from tokenizers import Tokenizer
from transformers import MambaConfig, MambaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
torch.manual_seed(0)
vocab_size = Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json").get_vocab_size()
config = MambaConfig(vocab_size=vocab_size, hidden_size=64, num_hidden_layers=2, state_size=8)
MambaForCausalLM(config).save_pretrained(sys.argv[1])
PY
remamba convert "$OUT/random" "$OUT/base" --tokenizer "$tokenizer" --compressor-init paper

step "data"
cp "$root/examples/demo_document.txt" "$OUT/prose/"
remamba data build planted --books "$OUT/prose/demo_document.txt" --output "$OUT/facts.jsonl" \
  --documents 64 --tokens 150 250 --questions 2 --tokenizer "$tokenizer"

# train NAME OPTIONS...: the paper's recipe at the size of a toy
train() {
  local name=$1
  shift
  remamba train --recipe paper --base "$OUT/base" --data "$OUT/facts.jsonl" --output "$OUT/$name" \
    --device cpu --max-steps "$STEPS" --batch-size 8 --accumulate 1 --questions-per-document 1 \
    --learning-rate 2e-3 --lora-rank 8 --save-steps $((STEPS / 4)) --logging-steps $((STEPS / 4)) "$@"
}

step "ReMamba"
train remamba
step "plain Mamba, on the same data"
train mamba --method mamba

step "ReMamba again, killed after its first checkpoint"
train killed 2>"$OUT/killed.err" &
running=$!
until [[ -f $OUT/killed/checkpoint-$((STEPS / 4))/meter.json ]]; do
  kill -0 "$running" 2>/dev/null || fail "the run ended by itself: $(tail -n 1 "$OUT/killed.err")"
  sleep 0.1
done
pkill -KILL -P "$running" 2>/dev/null || true
kill -KILL "$running" 2>/dev/null || true
wait "$running" 2>/dev/null || true
if [[ -f $OUT/killed/adapter_model.safetensors ]]; then fail "the run was done before it was killed"; fi
step "and resumed"
train killed --resume
cmp "$OUT/remamba/adapter_model.safetensors" "$OUT/killed/adapter_model.safetensors" ||
  fail "the resumed run differs from the uninterrupted one"

for name in remamba mamba; do
  step "$name merged and evaluated"
  remamba merge "$OUT/$name" "$OUT/$name-merged"
  remamba eval needle --model "$OUT/$name-merged" --data "$OUT/prose" --output "$OUT/$name-needle" \
    --lengths 300 600 --depths 0 1 --per-cell 2
  [[ -s $OUT/$name-needle/scores.json ]] || fail "no scores in $OUT/$name-needle"
done

step "all of it works; the results are in $OUT"
