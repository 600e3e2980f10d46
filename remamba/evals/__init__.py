"""Benchmarks: rows and prompts, predictions that survive a kill, official scores, reports."""
