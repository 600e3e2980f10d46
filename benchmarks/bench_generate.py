"""`remamba bench generate` as a script: python benchmarks/bench_generate.py --help."""

import sys

from remamba.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "generate", *sys.argv[1:]]))
