"""How a prompt becomes states."""
