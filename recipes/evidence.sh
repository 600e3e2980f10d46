#!/usr/bin/env bash
# The evidence: one base, and from it plain Mamba and the forms of ReMamba, all trained on the same
# data in the same order for the same steps, then asked the planted suite.
#
#   BOOKS=books OUT=evidence FAMILY=mamba2 recipes/evidence.sh
#
# BOOKS     folder with train-*.jsonl.xz and dev.jsonl.xz, books as JSON lines with a "text"
# OUT       folder for data, models and results
# CLASSES   TREC's labelled questions (trec_train.txt); without them the task few-shot is left out
# FAMILY    mamba2 or mamba (default: mamba2); the data serve both
# SIZE      2m, 4m, 10m or 16m (default: 10m)
# BASE_SEED seed of the base and of its training (default: 0); any other gets a folder of its own
# SEEDS     seeds of a branch: order, questions, drawn ratios (default: "1 2 3"); branches that
#           no conclusion rests on take the first alone
# BRANCHES  names from the table below (default: all of it); none ends with the base
# ROWS      documents of the test at each length, 4 questions each (default: 512)
# GPUS      numbers of the GPUs that branches are given to (default: the one that torch takes)
# JOBS      branches that train at once on each GPU (default: 1); at 10 million parameters
#           one takes 15 to 30 GiB (Mamba): 3 fit in 80
# PYTHON    interpreter with remamba[train,eval] (default: python)
# WORKERS   processes that write data (default: all cores)
# SCALE     full, or toy: the whole chain in minutes on two CPU cores; it learns nothing
#
# What is there already is skipped, so a chain that was cut off goes on where it was. The second
# family may begin once the first has written the data. At 10 million parameters a branch reads
# about 40 million tokens, one that reads a part of the document again for each question 135;
# train.json of each run tells what it took.
set -euo pipefail

: "${BOOKS:?set BOOKS to the folder with train-*.jsonl.xz}"
: "${OUT:?set OUT to the folder for data, models and results}"
PYTHON=${PYTHON:-python} CLASSES=${CLASSES:-} SCALE=${SCALE:-full}
WORKERS=${WORKERS:-$(getconf _NPROCESSORS_ONLN)}
FAMILY=${FAMILY:-mamba2} SIZE=${SIZE:-10m} BASE_SEED=${BASE_SEED:-0} GPUS=${GPUS:-} JOBS=${JOBS:-1}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
source "$root/recipes/chain.sh"

fail() {
  echo "evidence.sh: $*" >&2
  exit 2
}

books=("$BOOKS"/train-*.jsonl.xz)
[[ -f ${books[0]} ]] || fail "$BOOKS holds no train-*.jsonl.xz; set BOOKS to the folder of books"
[[ -f $BOOKS/dev.jsonl.xz ]] || fail "$BOOKS holds no dev.jsonl.xz; set BOOKS to the folder of books"
[[ $FAMILY == mamba || $FAMILY == mamba2 ]] || fail "FAMILY=$FAMILY: give mamba or mamba2"
[[ $BASE_SEED =~ ^[0-9]+$ ]] || fail "BASE_SEED=$BASE_SEED: give a whole number, 0 or more"

# -- the branches --

# Of the whole document (p = 1); the last one of two equal options counts.
whole="--length 1 1 --stage1-loss 1 --score-loss 1 --adaption multiplicative --document-loss 0.3"
evidence="$whole --score-target evidence"
# What is found is an answer's last token: words of several tokens must come whole.
window="$evidence --window 4"
# A vector that carries its token, and an alpha that leaves out all but the best.
relative="$window --value residual --adaption exact --importance relative"
# Whole sentences: a name and a value may stand on both sides of the token found.
sentences="$relative --window 16 --score-negatives batch"
# Of a part of it (s = 0): no loss on the document, whose vectors would see what comes later.
part="--start 0 --adaption selective --accumulate 4"

# form NAME: how a branch differs from plain Mamba; rho in `select`; the last rho, or how many
# places are kept of every document from `middle` on; the data of the last stage
form() {
  rho=0.015 kept= select_ratio=(0.08 0.4) last="crowds-long long"
  case $1 in
    plain | plain-more) options="--document-loss 0.3" ;;
    plain-bare) options="" ;; # beside the forms that have no loss on the document
    whole) options=$whole ;;
    whole-evidence) options=$evidence ;;
    window) options=$window ;;
    window-residual) options="$window --value residual" ;;
    window-relative) options=$relative ;;
    relative-batch) options="$relative --score-negatives batch" ;;
    few) options="$window --value residual" kept=24 ;;
    few-relative) options=$relative kept=24 ;;
    few-pairs) options="$relative --window 2" kept=24 ;;
    few-tokens) options="$relative --window 1" kept=16 ;;
    sentences*)
      options=$sentences kept=128 select_ratio=(0.15 0.6)
      case $1 in
        sentences) ;;
        sentences-256) kept=256 ;;
        sentences-share) rho=0.03 kept= ;;
        sentences-no-crowds) last=long ;;
        sentences-tokens) options+=" --window 1" ;;
        sentences-own) options+=" --score-negatives document" ;;
        sentences-answer) options+=" --score-target answer" ;;
        sentences-no-score) options+=" --score-negatives document --score-loss 0" ;;
        sentences-random | sentences-fixed)
          options+=" --score-negatives document --score-loss 0 --selector ${1#sentences-}"
          ;;
        sentences-true) options+=" --score-gradient true" ;;
        sentences-none | sentences-selective | sentences-multiplicative)
          options+=" --adaption ${1#sentences-}"
          ;;
        sentences-before) options+=" --placement before_question" ;;
        sentences-append)
          options+=" --score-negatives document --placement append --document-loss 0 --accumulate 4"
          ;;
        *) fail "BRANCHES: $1 is unknown; the table of branches is in recipes/evidence.sh" ;;
      esac
      ;;
    paper) options="$part --length 0.18 0.18" rho=0.009 ;;
    paper-score) options="$part --length 0.18 0.18 --stage1-loss 1 --score-loss 1" rho=0.009 ;;
    p20) options="$part --length 0.2 0.2" rho=0.05 ;;
    p20-score) options="$part --length 0.2 0.2 --stage1-loss 1 --score-loss 1" rho=0.05 ;;
    *) fail "BRANCHES: $1 is unknown; the table of branches is in recipes/evidence.sh" ;;
  esac
}

# what conclusions rest on
main="plain plain-more sentences sentences-random paper p20"
all="$main plain-bare sentences-no-score sentences-answer sentences-own sentences-tokens
  sentences-share sentences-256 sentences-no-crowds sentences-fixed sentences-none
  sentences-selective sentences-multiplicative sentences-true sentences-before sentences-append
  window-relative relative-batch few few-relative few-pairs few-tokens window-residual window
  whole whole-evidence paper-score p20-score"

# -- the sizes --

case $SCALE in
  full)
    SEEDS=${SEEDS:-1 2 3} BRANCHES=${BRANCHES:-$all} ROWS=${ROWS:-512} tune_rows=96
    test_lengths=(500 1000 2000 4000 6000 8000) tune_lengths=(1000 8000)
    tokenizer_options=() base_options=(--size "$SIZE")
    # documents of each file of data
    short=60000 names=80000 crowds=8000 crowds_long=5000 starts=40000 quotes=16000 text=20000
    middle=20000 long=10000
    # steps and documents a step
    recall_steps=500 names_steps=1500 mixed_steps=800 wide_steps=600
    readout_steps=120 select_steps=250 middle_steps=300 long_steps=400
    recall_batch=256 select_batch=192 middle_batch=64 long_batch=32
    middle_tokens=(250 900) long_tokens=(700 2000)
    ;;
  toy)
    books=("${books[0]}")
    SEEDS=${SEEDS:-1} BRANCHES=${BRANCHES:-plain sentences paper} ROWS=${ROWS:-16} tune_rows=8
    test_lengths=(300) tune_lengths=(300)
    tokenizer_options=(--vocab-size 1024 --sample-mb 0.2 --word-weight 20)
    SIZE=toy base_options=(--hidden-size 64 --layers 2 --state-size 16 --head-dim 16)
    short=64 names=64 crowds=32 crowds_long=16 starts=32 quotes=16 text=16 middle=32 long=16
    recall_steps=6 names_steps=4 mixed_steps=4 wide_steps=2
    readout_steps=2 select_steps=2 middle_steps=2 long_steps=2
    recall_batch=8 select_batch=8 middle_batch=4 long_batch=4
    middle_tokens=(250 400) long_tokens=(300 500)
    ;;
  *) fail "SCALE=$SCALE: give full or toy" ;;
esac
if [[ $BRANCHES == none ]]; then BRANCHES=; fi
for name in $BRANCHES; do form "$name"; done # an unknown name ends it here

# -- the tokenizer and the data --

with_classes=()
tasks=(facts two-hop many-facts retrieval count dictionary code)
weights=(4 2 2 4 1 1 1) # most of facts and of retrieval, which the claim is about
if [[ -n $CLASSES ]]; then
  tasks+=(few-shot) weights+=(1)
  with_classes=(--classes "$CLASSES")
fi

if [[ ! -f $OUT/tokenizer/tokenizer.json ]]; then
  timed tokenizer "$PYTHON" "$root/examples/make_base.py" --books "${books[@]}" \
    --output "$OUT/tokenizer" --tokenizer-only --overwrite \
    ${with_classes[@]+"${with_classes[@]}"} ${tokenizer_options[@]+"${tokenizer_options[@]}"}
fi

# Many of training's kinds of facts have any words for values: a model that knows its
# values from training copies no others (docs/LOG.md, the first models of the evidence).
open=(--open-values 0.5) more_open=(--open-values 0.75)
# Short documents with the numbers that paragraphs have in long ones.
high=(--first-paragraph 1 30)

# data NAME DOCUMENTS OPTIONS...: training data, or what other --books and --split say; begun only
writing=()
data() {
  local name=$1 documents=$2 file=$OUT/data/$1.jsonl
  shift 2
  if [[ -f $file ]]; then
    echo "== data $name: is there" >&2
    return
  fi
  timed "data $name" "$PYTHON" -m remamba.cli data build planted --books "${books[@]}" \
    --output "$file" --documents "$documents" --tokenizer "$OUT/tokenizer" \
    --workers "$WORKERS" "$@" &
  writing+=($!)
}

wait_for_data() {
  local job
  for job in ${writing[@]+"${writing[@]}"}; do wait "$job"; done # one that failed ends it here
  writing=()
}

# short documents, dense with facts
data short "$short" --tasks facts many-facts two-hop dictionary --weights 5 1 1 1 --tokens 60 160 \
  --facts-per-1000 50 --questions 6 "${open[@]}" --seed 20
# one or two kinds of facts: only the name tells them apart. Values are training's own, sentences
# few: with open values and all sentences names were not learnt (docs/LOG.md, the third models of
# the evidence).
data names "$names" --tasks facts --kinds 1 2 --tokens 60 160 --facts-per-1000 60 --questions 6 \
  --sentences 6 --echo 0.8 --seed 21
# The base begins with these two: the others are written meanwhile.
wait_for_data
# the same in longer documents, with open values and all sentences
data crowds "$crowds" --tasks facts --kinds 1 3 --tokens 150 1000 --facts-per-1000 30 \
  --questions 6 "${open[@]}" --seed 27
# as many facts of one kind in 2,000 tokens as there are in 8,000 where all kinds occur; people
# often share a value
data crowds-long "$crowds_long" --tasks facts --kinds 1 4 --values 4 40 \
  --tokens "${long_tokens[@]}" --facts-per-1000 30 --questions 6 "${more_open[@]}" --seed 28
# the shortest documents, of all kinds of facts
data starts "$starts" --tasks facts --tokens 50 100 --facts-per-1000 60 --questions 3 \
  "${open[@]}" --seed 26
# which of a few paragraphs a line is from
data quotes "$quotes" --tasks retrieval --tokens 130 300 --questions 6 "${high[@]}" --seed 25
# plain text: the books and what is planted in them
data text "$text" --tasks "${tasks[@]}" --tokens 400 1200 --no-questions "${open[@]}" "${high[@]}" \
  --seed 22 \
  ${with_classes[@]+"${with_classes[@]}"}
# all tasks; then as long as training goes
data middle "$middle" --tasks "${tasks[@]}" --weights "${weights[@]}" \
  --tokens "${middle_tokens[@]}" --facts-per-1000 30 "${more_open[@]}" "${high[@]}" --seed 23 \
  ${with_classes[@]+"${with_classes[@]}"}
data long "$long" --tasks "${tasks[@]}" --weights "${weights[@]}" \
  --tokens "${long_tokens[@]}" --facts-per-1000 30 "${more_open[@]}" "${high[@]}" --seed 24 \
  ${with_classes[@]+"${with_classes[@]}"}
# held_out SPLIT DOCUMENTS LENGTH...: other books, people, words, values and phrasings
held_out() {
  local split=$1 documents=$2 tokens
  shift 2
  for tokens in "$@"; do
    data "$split-$tokens" "$documents" --books "$BOOKS/dev.jsonl.xz" --split "$split" \
      --tasks "${tasks[@]}" --weights "${weights[@]}" \
      --tokens $((tokens * 9 / 10)) $((tokens * 11 / 10)) --questions 4 --seed 90 \
      ${with_classes[@]+"${with_classes[@]}"}
  done
}
# what a form is chosen by; first whether names are known at all: facts of one kind
data dev-150 "$tune_rows" --books "$BOOKS/dev.jsonl.xz" --split dev --tasks facts --kinds 1 1 \
  --tokens 130 170 --facts-per-1000 50 --questions 4 --seed 90
held_out dev "$tune_rows" "${tune_lengths[@]}"
held_out test "$ROWS" "${test_lengths[@]}"

# -- training --

models=$OUT/$FAMILY-$SIZE
base_seed=() # of training: its default
if [[ $BASE_SEED != 0 ]]; then models+=-base$BASE_SEED base_seed=(--seed "$BASE_SEED"); fi
# batches of many shapes leave holes, and three processes a GPU have no room for them
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

if [[ ! -f $models/base/model.safetensors ]]; then
  timed base "$PYTHON" "$root/examples/make_base.py" --family "$FAMILY" \
    --tokenizer "$OUT/tokenizer" --output "$models/base" --overwrite --seed "$BASE_SEED" \
    "${base_options[@]}"
fi

# A base that tells facts by their kind alone looks well trained, and nothing made from it finds a
# name among many.
warn_if_names_failed() {
  local found
  found=$(grep -o '"stopped": "[^"]*"' "$models/base-names/train.json" || true)
  if [[ $found == *"all steps done"* ]]; then
    echo "evidence.sh: base-names ended below --stop-accuracy; see accuracy in" \
      "$models/base-names/log.jsonl" >&2
  fi
}

plain=(--method mamba --document-loss 0.3 ${base_seed[@]+"${base_seed[@]}"})
# Recall: answers by the kind of fact alone.
stage base-recall base short "${plain[@]}" --max-steps "$recall_steps" \
  --batch-size "$recall_batch" --questions-per-document 4 --learning-rate 2e-3 --warmup-steps 100
# Documents with one or two kinds of facts force it to read names.
stage base-names base-recall names "${plain[@]}" --max-steps "$names_steps" \
  --batch-size "$recall_batch" --questions-per-document 6 --learning-rate 2e-3 --warmup-steps 50 \
  --lr-scheduler linear --min-learning-rate-share 0.3 --stop-accuracy 0.9 --stop-window 25
if [[ $SCALE == full ]]; then warn_if_names_failed; fi
wait_for_data
# All tasks, and text.
stage base-mixed base-names "short names crowds quotes middle text" "${plain[@]}" \
  --max-steps "$mixed_steps" --batch-size "$middle_batch" --questions-per-document 8 \
  --learning-rate 1.5e-3 --warmup-steps 20 --min-learning-rate-share 0.3
stage base-wide base-mixed "crowds middle long text" "${plain[@]}" --max-steps "$wide_steps" \
  --batch-size "$long_batch" --questions-per-document 8 --learning-rate 1e-3 --warmup-steps 20 \
  --min-learning-rate-share 0.3

# branch NAME SEED: four stages from the base
branch() {
  local name=$1 seed=$2 run=$1-s$2 previous=base-wide number=0 times=1
  local options rho kept select_ratio last
  if [[ -f $models/kept/$run/model.safetensors ]]; then
    echo "== $run: is there" >&2
    return
  fi
  form "$name"
  if [[ $name == plain-more ]]; then times=2; fi # about the compute of two stages

  # next NAME DATA LO HI STEPS OPTIONS...: rho falls from HI to LO
  next() {
    local stage=$1 files=$2 low=$3 high=$4 steps=$5 own=(--method mamba)
    shift 5
    if [[ $name != plain* ]]; then
      own=(--method remamba --keep-ratio-schedule anneal --keep-ratio "$low" "$high")
      if [[ -n $kept && ($stage == middle || $stage == long) ]]; then
        own=(--method remamba --num-kept "$kept")
      fi
    fi
    number=$((number + 1))
    # shellcheck disable=SC2086 # options are words
    stage "$run/$stage" "$previous" "$files" "${own[@]}" --max-steps $((steps * times)) \
      --warmup-steps 20 --seed $((10 * seed + number)) "$@" $options
    previous=$run/$stage
  }

  # Nearly every place is kept: Value learns to be read before anything is left out, on the
  # shortest documents, where that begins soonest.
  next read-out starts 0.99 1 "$readout_steps" --batch-size "$recall_batch" \
    --questions-per-document 3 --learning-rate 1e-3 --lr-scheduler constant
  # Fewer and fewer places are kept: the score learns which.
  next select "short names quotes" "${select_ratio[@]}" "$select_steps" \
    --batch-size "$select_batch" --accumulate 2 --questions-per-document 4 --learning-rate 1.2e-3 \
    --min-learning-rate-share 0.5
  # All tasks; then the length and the ratio that the model is for.
  next middle "crowds middle" 0.05 0.1 "$middle_steps" --batch-size "$middle_batch" \
    --questions-per-document 4 --learning-rate 1e-3 --min-learning-rate-share 0.5
  next long "$last" "$rho" 0.05 "$long_steps" --batch-size "$long_batch" \
    --questions-per-document 6 --learning-rate 8e-4
  in_bfloat16 "$models/$previous" "$models/kept/$run"
  rm -f "$models/$run"/*/model.safetensors # logs and settings stay
}

# ask NAME SEED: the held-out questions; beside two stages the controls that share their weights
ask() {
  local name=$1 run=$1-s$2 conditions="two-stage stage1" with=()
  case $name in
    plain)
      conditions="plain plain-drop20 plain-middle plain-bm25 constant"
      with=(--plain "$models/kept/$run")
      ;;
    plain-*) conditions=stage1 ;; # itself
    sentences | window-relative) conditions+=" random fixed drop model-bm25 two-stage-bm25" ;;
  esac
  questions dev 150 "${tune_lengths[@]}"
  questions test "${test_lengths[@]}"
}

# questions SPLIT LENGTH...: what `ask` asks of one split
questions() {
  local output=$models/asked-$1/$run files=() more=() tokens split=$1
  shift
  if grep -qs '"status": "finished"' "$output/run.json"; then
    echo "== $output: is there" >&2
    return
  fi
  for tokens in "$@"; do files+=("$OUT/data/$split-$tokens.jsonl"); done
  if [[ -f $output/run.json ]]; then more=(--resume); fi
  # shellcheck disable=SC2086 # conditions are words
  "$PYTHON" -m remamba.cli eval planted --data "${files[@]}" --model "$models/kept/$run" \
    --output "$output" --lengths "$@" --conditions $conditions --dtype float32 \
    ${with[@]+"${with[@]}"} ${more[@]+"${more[@]}"}
}

# what conclusions rest on comes first, with every seed
waiting=()
for seed in $SEEDS; do
  for name in $BRANCHES; do
    if [[ " $main " == *" $name "* ]]; then waiting+=("$name $seed"); fi
  done
done
for name in $BRANCHES; do
  if [[ " $main " != *" $name "* ]]; then waiting+=("$name ${SEEDS%% *}"); fi
done

# Each branch takes a free place on a GPU; one that fails does not stop the others.
mkdir -p "$models/logs"
rm -f "$models/logs/failed"
places=$(mktemp -u)
mkfifo "$places"
exec 3<>"$places"
rm "$places"
for ((i = 0; i < JOBS; i++)); do
  for gpu in ${GPUS:-first}; do echo "$gpu" >&3; done
done
for pair in ${waiting[@]+"${waiting[@]}"}; do
  read -r name seed <<<"$pair"
  read -r -u 3 gpu
  log=$models/logs/$name-s$seed.log
  echo "== $name, seed $seed: GPU $gpu, $SECONDS s in all, log in $log" >&2
  (
    trap 'if (($?)); then echo "$log" >>"$models/logs/failed"; fi; echo "$gpu" >&3' EXIT
    if [[ -n $GPUS ]]; then export CUDA_VISIBLE_DEVICES=$gpu; fi
    branch "$name" "$seed" >"$log" 2>&1
    ask "$name" "$seed" >>"$log" 2>&1
  ) &
done
wait
if [[ -f $models/logs/failed ]]; then
  echo "evidence.sh: failed; see $(tr '\n' ' ' <"$models/logs/failed")" >&2
  exit 1
fi
echo "== $models after $SECONDS s: weights in kept/, results in asked-test/*/report.md" >&2
