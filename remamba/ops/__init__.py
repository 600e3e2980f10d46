"""Plain functions on channels-last tensors: the scans, their decode steps, the convolution."""

from remamba.ops.backend import explain, resolve, use_backend
from remamba.ops.convolution.op import causal_conv
from remamba.ops.loss.op import cross_entropy
from remamba.ops.norm.op import gated_rms_norm, rms_norm
from remamba.ops.scan.op import selective_scan, selective_scan_ref
from remamba.ops.ssd_scan.op import ssd, ssd_ref
from remamba.ops.state_update.op import selective_state_update, ssd_state_update
from remamba.ops.time_step.op import adapt_dt, decay_rate

__all__ = [
    "adapt_dt",
    "causal_conv",
    "cross_entropy",
    "decay_rate",
    "explain",
    "gated_rms_norm",
    "resolve",
    "rms_norm",
    "selective_scan",
    "selective_scan_ref",
    "selective_state_update",
    "ssd",
    "ssd_ref",
    "ssd_state_update",
    "use_backend",
]
