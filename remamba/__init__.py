"""ReMamba (arXiv 2408.15496): Mamba models that read long inputs twice.

Axis letters, in every docstring and einsum: b batch, l sequence, m span to compress, k kept,
d hidden size, e inner channels, n state, r time-step rank, w convolution width; h heads, p head
dimension and g groups in Mamba-2. Indices are 0-based and half-open.

Paper to code: L `lengths`, s `start`, p `length`, rho `keep_ratio`, K `num_kept`, h_i `hidden`,
h_L `last_hidden`, cos_i `scores`, alpha `Adaption.alpha`, Theta `mixer.adaption.theta`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from remamba.cache import DocumentMemory, Kept, Span, StateCache
from remamba.configuration_remamba import CompressionConfig, ReMambaConfig
from remamba.errors import InputError
from remamba.modeling_remamba import ReMambaForCausalLM, ReMambaModel, ReMambaOutput

__version__ = "0.1.0"
__all__ = [
    "CompressionConfig",
    "DocumentMemory",
    "InputError",
    "Kept",
    "ReMambaConfig",
    "ReMambaForCausalLM",
    "ReMambaModel",
    "ReMambaOutput",
    "Span",
    "StateCache",
]

AutoConfig.register(ReMambaConfig.model_type, ReMambaConfig, exist_ok=True)
AutoModel.register(ReMambaConfig, ReMambaModel, exist_ok=True)
AutoModelForCausalLM.register(ReMambaConfig, ReMambaForCausalLM, exist_ok=True)
