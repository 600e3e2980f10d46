"""How a backbone is run: passes in pieces, prefill, decoding, captured graphs."""
