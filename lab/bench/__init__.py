"""Benchmarks: speed and memory beside plain Mamba, transformers and mamba_ssm, in one run."""
