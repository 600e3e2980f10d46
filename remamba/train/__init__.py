"""Training: rows to batches, the drawn compression of every step, and transformers' Trainer."""
