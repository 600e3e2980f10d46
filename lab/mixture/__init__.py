"""The paper's training mixture."""
