"""The ways of reading: how a prompt becomes the states that decoding goes on from."""
