"""The paper's tables and figures: their rows, and the same in miniature."""
