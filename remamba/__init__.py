"""ReMamba (arXiv 2408.15496): Mamba models that read long inputs twice.

Axis letters, in every docstring and einsum: b batch, l sequence, m span to compress, k kept,
d hidden size, e inner channels, n state, r time-step rank, w convolution width; h heads, p head
dimension and g groups in Mamba-2. Indices are 0-based and half-open.

Paper to code: L `lengths`, s `start`, p `length`, rho `keep_ratio`, K `num_kept`, h_i `hidden`,
h_L `last_hidden`, cos_i `scores`, alpha `Adaption.alpha`, Theta `mixer.adaption.theta`.
"""

from typing import TYPE_CHECKING

from remamba.auto_classes import install

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

_HOMES = {
    "CompressionConfig": "compression_config",
    "DocumentMemory": "methods.memory",
    "InputError": "errors",
    "Kept": "methods.selection",
    "ReMambaConfig": "configuration_remamba",
    "ReMambaForCausalLM": "modeling_remamba",
    "ReMambaModel": "modeling_remamba",
    "ReMambaOutput": "modeling_remamba",
    "Span": "methods.selection",
    "StateCache": "model.states",
}
"""Public name -> the module that defines it, which is imported when the name is first used."""

if TYPE_CHECKING:
    from remamba.compression_config import CompressionConfig
    from remamba.configuration_remamba import ReMambaConfig
    from remamba.errors import InputError
    from remamba.methods.memory import DocumentMemory
    from remamba.methods.selection import Kept, Span
    from remamba.model.states import StateCache
    from remamba.modeling_remamba import ReMambaForCausalLM, ReMambaModel, ReMambaOutput
else:
    # hidden from type checkers, which would take every name for a good one

    def __getattr__(name: str) -> object:
        """A public name, from its module (PEP 562)."""
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
