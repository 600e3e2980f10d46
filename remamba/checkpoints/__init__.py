"""Published checkpoints and their layouts."""
