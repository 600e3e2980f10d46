"""A Mamba and nothing else: its layers, its states, and rows of tokens."""
