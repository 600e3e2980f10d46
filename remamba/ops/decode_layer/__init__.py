"""A layer's step over one token, in few kernels."""
