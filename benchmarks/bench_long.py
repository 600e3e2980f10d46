"""`remamba bench long` as a script: python benchmarks/bench_long.py --help."""

import sys

from remamba.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "long", *sys.argv[1:]]))
