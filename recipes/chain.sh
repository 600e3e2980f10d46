# What the recipes of chains share; sourced by them. A stage whose run is finished is skipped, so a
# chain that was cut off goes on where it was.
#
# Wanted: PYTHON; OUT, whose data/ holds the rows (and in cache/ their tokens); models, the folder
# of the runs.

# timed NAME COMMAND...
timed() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name" >&2
  "$@"
  echo "== $name: $((SECONDS - start)) s, $SECONDS s in all" >&2
}

# stage RUN BASE "DATA ..." OPTIONS...: one run of remamba train
stage() {
  local name=$1 base=$2 files=() word
  for word in $3; do files+=("$OUT/data/$word.jsonl"); done
  shift 3
  local run=$models/$name
  if grep -qs '"status": "finished"' "$run/train.json"; then
    echo "== $name: is there" >&2
    return
  fi
  if [[ -f $run/train.json ]]; then set -- "$@" --overwrite; fi # was cut off
  timed "$name" "$PYTHON" -m remamba.cli train --base "$models/$base" --data "${files[@]}" \
    --data-cache "$OUT/data/cache" --output "$run" --save-steps 0 "$@"
}

# in_bfloat16 SOURCE TARGET: a model's weights in half the bytes, with config and tokenizer
in_bfloat16() {
  "$PYTHON" - "$1" "$2" <<'PY'
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
    if (source / name).is_file():
        shutil.copyfile(source / name, target / name)
config = {**json.loads((source / "config.json").read_text()), "dtype": "bfloat16"}
(target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
weights = load_file(source / "model.safetensors")
weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
save_file(weights, target / "part.safetensors", metadata={"format": "pt"})
(target / "part.safetensors").rename(target / "model.safetensors")  # last: it tells that all is there
PY
}
