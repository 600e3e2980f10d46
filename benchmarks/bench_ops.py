"""`remamba bench ops` as a script: python benchmarks/bench_ops.py --help."""

import sys

from remamba.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", *sys.argv[1:]]))
