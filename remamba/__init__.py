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
    "Answer",
    "Ask",
    "CompressionConfig",
    "Document",
    "DocumentMemory",
    "Engine",
    "InputError",
    "Kept",
    "ReMambaConfig",
    "ReMambaForCausalLM",
    "ReMambaModel",
    "ReMambaOutput",
    "Reader",
    "Request",
    "SamplingOptions",
    "Span",
    "StateCache",
    "convert",
    "load_tokenizer",
]

_HOMES = {
    "Answer": "engine.answer",
    "Ask": "engine.answer",
    "CompressionConfig": "compression_config",
    "Document": "engine.document",
    "DocumentMemory": "methods.memory",
    "Engine": "engine.engine",
    "InputError": "errors",
    "Kept": "methods.selection",
    "ReMambaConfig": "configuration_remamba",
    "ReMambaForCausalLM": "modeling_remamba",
    "ReMambaModel": "modeling_remamba",
    "ReMambaOutput": "modeling_base",
    "Reader": "engine.reader",
    "Request": "engine.request",
    "SamplingOptions": "engine.sampling",
    "Span": "methods.selection",
    "StateCache": "model.states",
    "convert": "checkpoints.convert",
    "load_tokenizer": "text",
}
"""Public name -> the module that defines it, which is imported when the name is first used."""

if TYPE_CHECKING:
    from remamba.checkpoints.convert import convert
    from remamba.compression_config import CompressionConfig
    from remamba.configuration_remamba import ReMambaConfig
    from remamba.engine.answer import Answer, Ask
    from remamba.engine.document import Document
    from remamba.engine.engine import Engine
    from remamba.engine.reader import Reader
    from remamba.engine.request import Request
    from remamba.engine.sampling import SamplingOptions
    from remamba.errors import InputError
    from remamba.methods.memory import DocumentMemory
    from remamba.methods.selection import Kept, Span
    from remamba.model.states import StateCache
    from remamba.modeling_base import ReMambaOutput
    from remamba.modeling_remamba import ReMambaForCausalLM, ReMambaModel
    from remamba.text import load_tokenizer
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
