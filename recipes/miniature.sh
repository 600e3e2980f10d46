#!/usr/bin/env bash
# The questions of `remamba reproduce --scale tiny`: planted documents of the test split, packed as
# lab/assets/planted/miniature.jsonl.xz.
#
#   BOOKS=books recipes/miniature.sh
#
# BOOKS      folder with dev.jsonl.xz, books that no training reads, as JSON lines with a "text"
# OUT        folder for the packed rows and their manifest (default: lab/assets/planted)
# PYTHON     interpreter with remamba (default: python)
# DOCUMENTS  of each task at each length, 4 questions each if they fit (default: 12)
#
# The same books and tokenizer give the same rows. It takes 4 minutes on two CPU cores.
set -euo pipefail

: "${BOOKS:?set BOOKS to the folder with dev.jsonl.xz}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python} OUT=${OUT:-$root/lab/assets/planted} DOCUMENTS=${DOCUMENTS:-12}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
tokenizer=$root/remamba/assets/remamba-tiny

if [[ ! -f $BOOKS/dev.jsonl.xz ]]; then
  echo "miniature.sh: $BOOKS holds no dev.jsonl.xz; set BOOKS to the folder of books" >&2
  exit 2
fi
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

files=()
for tokens in 150 250 500 1000 2000; do
  dense=() # the shortest have room for few questions
  if ((tokens == 150)); then dense=(--facts-per-1000 50); fi
  for task in facts two-hop many-facts retrieval; do
    file=$parts/$task-$tokens.jsonl
    "$PYTHON" -m remamba.cli data build planted --books "$BOOKS/dev.jsonl.xz" --output "$file" \
      --documents "$DOCUMENTS" --tasks "$task" --split test --questions 4 --seed "$tokens" \
      --tokens $((tokens * 9 / 10)) $((tokens * 11 / 10)) --tokenizer "$tokenizer" \
      ${dense[@]+"${dense[@]}"} >&2
    files+=("$file")
  done
done

"$PYTHON" - "$OUT" "$BOOKS/dev.jsonl.xz" "$tokenizer/tokenizer.json" "${files[@]}" <<'PY'
import hashlib
import json
import lzma
import sys
from pathlib import Path

out, *inputs = map(Path, sys.argv[1:4])
rows = b"".join(Path(name).read_bytes() for name in sys.argv[4:])
questions = [len(json.loads(row)["questions"]) for row in rows.splitlines()]
made = {
    "output": "miniature.jsonl.xz",
    "recipe": "recipes/miniature.sh",
    "rows": len(questions),
    "questions": sum(questions),
    "sha256 of the rows": hashlib.sha256(rows).hexdigest(),
    "sha256 of the inputs": {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs
    },
}
out.mkdir(parents=True, exist_ok=True)
(out / made["output"]).write_bytes(lzma.compress(rows, preset=9 | lzma.PRESET_EXTREME))
(out / "miniature.manifest.json").write_text(json.dumps(made, indent=2) + "\n")
print(f"{out / made['output']}: {made['rows']} documents, {made['questions']} questions")
PY
