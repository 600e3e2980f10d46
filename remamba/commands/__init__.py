"""The subcommands of `remamba`, one module each: a frozen dataclass `Args` and `run(args)`.

The attribute docstrings of `Args` are the text of `--help`. `run` returns the exit code (None
is 0). What the user gave and cannot be used is raised as `remamba.errors.InputError`.
"""
