"""A of the scans from the parameter that trains."""

import torch

from remamba.ops.backend import implementation


def decay_rate(A_log: torch.Tensor) -> torch.Tensor:
    """A = -exp(A_log), float32 (float64 for float64), of A_log's shape; negative by construction.

    Computed at every call: a copy kept beside the parameter would have to notice every way in
    which a parameter can change, and a captured graph could not.
    """
    return implementation("decay_rate", A_log.device, A_log.dtype)(A_log)


def decay_rate_torch(A_log: torch.Tensor) -> torch.Tensor:
    """decay_rate by torch's own."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
