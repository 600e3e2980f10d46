"""Planted data is asked about under many conditions, and what was found is told."""
