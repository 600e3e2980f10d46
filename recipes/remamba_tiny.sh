#!/usr/bin/env bash
# Make remamba-tiny, the embedded model of 4 million parameters, and a plain Mamba beside it.
#
#   BOOKS=books OUT=tiny recipes/remamba_tiny.sh
#
# BOOKS    folder with train-*.jsonl.xz, books as JSON lines with a "text" (and dev.jsonl.xz)
# OUT      folder for data and models
# PYTHON   interpreter with remamba[train] (default: python)
# WORKERS  processes that write data (default: all cores)
#
# What is there already is skipped, so a chain that was cut off goes on where it was. Training takes
# about 8 minutes on one H100 for ReMamba and 6 more for plain Mamba. The accuracies in the comments
# are measured: the share of answers that are right in every token, over the last steps of a stage.
set -euo pipefail

: "${BOOKS:?set BOOKS to the folder with train-*.jsonl.xz}"
: "${OUT:?set OUT to the folder for data and models}"
PYTHON=${PYTHON:-python}
WORKERS=${WORKERS:-$(getconf _NPROCESSORS_ONLN)}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
models=$OUT
source "$root/recipes/chain.sh"

books=("$BOOKS"/train-*.jsonl.xz)
if [[ ! -f ${books[0]} ]]; then
  echo "remamba_tiny.sh: $BOOKS holds no train-*.jsonl.xz; set BOOKS to the folder of books" >&2
  exit 2
fi

# facts NAME OPTIONS...: documents with facts, counted in the tokens of the base
facts() {
  local name=$1 file=$OUT/data/$1.jsonl
  shift
  if [[ -f $file ]]; then
    echo "== data $name: is there" >&2
    return
  fi
  timed "data $name" "$PYTHON" -m remamba.cli data build planted --books "${books[@]}" \
    --output "$file" --tokenizer "$OUT/base" --workers "$WORKERS" "$@"
}

# -- the base: tokenizer and random weights, half of the heads slow, half local --

if [[ ! -f $OUT/base/model.safetensors ]]; then
  timed base "$PYTHON" "$root/examples/make_base.py" --books "${books[@]}" \
    --output "$OUT/base" --hidden-size 256 --layers 6 --vocab-size 4096 --overwrite
fi

# -- the data --

# short documents with all kinds of facts
facts b0 --documents 120000 --tokens 60 250 --facts-per-1000 38 --questions 6 --seed 20
# one or two kinds, or few: only the name tells the facts apart
facts k1 --documents 150000 --tokens 60 160 --facts-per-1000 60 --questions 6 --seed 40 --kinds 1 2
facts k0 --documents 60000 --tokens 60 250 --facts-per-1000 38 --questions 6 --seed 30 --kinds 1 4
# longer; then as long as it is for, each with many facts and with few facts in much prose
facts s3a --documents 16000 --tokens 250 900 --facts-per-1000 30 --questions 8 --seed 33 --kinds 1 6
facts s3b --documents 8000 --tokens 250 900 --facts-per-1000 10 --questions 8 --seed 34 --kinds 2 13
facts s4a --documents 8000 --tokens 700 2000 --facts-per-1000 22 --questions 8 --seed 35 \
  --kinds 2 13
facts s4b --documents 5000 --tokens 700 2000 --facts-per-1000 7 --questions 8 --seed 36 --kinds 2 13

# -- the plain model that both branches start from --

# Recall: 88.6 % at the end. It answers by the kind of fact alone; the name is not used.
stage recall base b0 --method mamba --max-steps 500 --batch-size 256 --questions-per-document 4 \
  --document-loss 0.3 --learning-rate 2e-3 --warmup-steps 100

# Documents with one or two kinds of facts force it to read names: 36 % until step 175, then 92.5 %
# at step 275, where it stopped.
stage names recall k1 --method mamba --max-steps 1400 --batch-size 256 --questions-per-document 6 \
  --document-loss 0.3 --learning-rate 2e-3 --warmup-steps 50 --lr-scheduler linear \
  --min-learning-rate-share 0.3 --stop-accuracy 0.9 --stop-window 25 --logging-steps 25

# -- the two branches: the same data, order and steps --

# branch METHOD PREFIX
branch() {
  local method=$1 prefix=$2 previous=names

  # next NAME "DATA ..." "COMPRESSION" OPTIONS...: plain Mamba is trained without the compression
  next() {
    local name=$1 data=$2 compression=()
    if [[ $method == remamba ]]; then
      read -ra compression <<<"--stage1-loss 1 --score-loss 1 --keep-ratio-schedule anneal \
--adaption multiplicative $3"
    fi
    shift 3
    stage "$prefix$name" "$previous" "$data" --method "$method" --document-loss 0.3 \
      --warmup-steps 20 "$@" ${compression[@]+"${compression[@]}"}
    previous=$prefix$name
  }

  # Nearly every place is kept: Value learns to be read before anything is left out.
  next read-out k1 "--keep-ratio 0.99 1" --max-steps 80 --batch-size 256 \
    --questions-per-document 3 --learning-rate 1e-3 --lr-scheduler constant --seed 1

  # Fewer and fewer places are kept: the score learns which. 96.1 %, plain 97.8 %.
  next select k0 "--keep-ratio 0.08 0.4" --max-steps 250 --batch-size 192 \
    --questions-per-document 4 --learning-rate 1.2e-3 --min-learning-rate-share 0.5 --seed 2

  # Documents four times as long, with prose around the facts. 98.8 %, plain 96.7 %.
  next middle "s3a s3b" "--keep-ratio 0.03 0.08" --max-steps 300 --batch-size 64 \
    --questions-per-document 8 --learning-rate 1e-3 --min-learning-rate-share 0.5 --seed 3

  # The length and the ratio that the model is for. 99.6 %, plain 97.0 %.
  next long "s4a s4b" "--keep-ratio 0.015 0.03 --eval-keep-ratio 0.015" --max-steps 300 \
    --batch-size 32 --questions-per-document 8 --learning-rate 8e-4 --seed 4
}

branch remamba ""
branch mamba plain-

# -- the model as it is embedded: half the bytes --

in_bfloat16 "$OUT/long" "$OUT/remamba-tiny"

echo "== $OUT/remamba-tiny after $SECONDS s; to measure it beside plain Mamba:" >&2
echo "$PYTHON -m remamba.cli data build planted --books $BOOKS/dev.jsonl.xz --split dev" \
  "--documents 50 --questions 4 --tokens 4000 4000 --tokenizer $OUT/remamba-tiny" \
  "--output $OUT/data/dev-4000.jsonl &&" \
  "$PYTHON -m remamba.cli eval planted --data $OUT/data/dev-4000.jsonl" \
  "--model $OUT/remamba-tiny --plain $OUT/plain-long --output $OUT/planted"
