#!/usr/bin/env bash
# Figure 6: speed by the length of the input, Mamba and Mamba-2 plain and with two stages, and a Llama.
#
#   OUT=fig6 recipes/fig6.sh
#
# OUT     folder for fig6.json, fig6.md and fig6.png
# PYTHON  interpreter with remamba[eval] (default: python)
#
# Needs one GPU with about 30 GiB. Weights are random, of the true shapes: nothing is downloaded.
set -euo pipefail

: "${OUT:?set OUT to the folder for the figure}"
PYTHON=${PYTHON:-python}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

exec "$PYTHON" -m remamba.cli bench fig6 --scale paper --output "$OUT"
