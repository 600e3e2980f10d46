"""Planted data: books with tasks hidden in them, whose every answer and evidence is known."""
