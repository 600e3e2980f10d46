"""Names and shapes of a model's tensors by its configuration, checked against its files."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from remamba.configuration_remamba import ReMambaConfig
from remamba.errors import InputError
from remamba.methods.base import own_method
from remamba.pretrained import stored_shapes

M = TypeVar("M", bound=nn.Module)
LAYER = "backbone.layers.{}."
"""What the names of a layer's parameters begin with."""
LAYER_NAME = re.compile(r"backbone\.layers\.(\d{1,9})\.")


DRAWS = (Tensor.normal_, Tensor.uniform_)


class _NoInitialValues(TorchFunctionMode):
    """Leaves out what draws initial values, for which torch imports its compiler on "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def without_memory(kind: Callable[[ReMambaConfig], M], config: ReMambaConfig) -> M:
    """A model whose weights have shapes and no values."""
    with torch.device("meta"), _NoInitialValues():
        return kind(config)


def expected_shapes(kind: type[nn.Module], config: ReMambaConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of a model by name, in its order; no memory is taken.

    All layers have the shapes of one, so a configuration of many is not slower.

    Raises:
        InputError: the sizes are beyond what can be counted.
    """
    one = copy.deepcopy(config)
    one.num_hidden_layers = 1
    try:
        model = without_memory(kind, one)
    except RuntimeError as error:
        raise InputError(
            f"hidden_size = {config.hidden_size} with intermediate_size = "
            f"{config.intermediate_size} and state_size = {config.state_size} gives tensors that "
            "are too large to be counted; correct config.json"
        ) from error
    found: dict[str, torch.Size] = {}
    first = {n: x.shape for n, x in model.state_dict().items() if n.startswith(LAYER.format(0))}
    for name, tensor in model.state_dict().items():
        if name not in first:
            found[name] = tensor.shape
        elif name == next(iter(first)):
            for layer in range(config.num_hidden_layers):
                for own, shape in first.items():
                    found[LAYER.format(layer) + own.removeprefix(LAYER.format(0))] = shape
    return found


def check_weights(
    kind: type[nn.Module], path: str, values: dict[str, Any], options: dict[str, Any]
) -> None:
    """Raise InputError where a model's sizes are not those of its weights, before memory is taken.

    Args:
        path: a directory; of a hub name nothing is known yet.
        values: of its config.json.
        options: of `from_pretrained`: a `config`, or settings in place of those of `values`.
    """
    try:
        config = _config_of(values, options)
        own_method(config)
        one = copy.deepcopy(config)
        one.num_hidden_layers = 1
        shapes = expected_shapes(kind, one)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: config.json: {error}") from error
    stored = stored_shapes(Path(path) / (options.get("subfolder") or ""))
    layers = {int(found[1]) for name in stored if (found := LAYER_NAME.match(name))}
    if not layers:
        return
    count, wanted = max(layers) + 1, config.num_hidden_layers
    if count != wanted:
        what = "missing" if wanted > count else "unexpected"
        raise InputError(
            f"{path} has {what} tensors: {LAYER.format(min(wanted, count))}*, since its weights "
            f"have {count} layers and num_hidden_layers = {wanted}; correct config.json"
        )
    for name, shape in shapes.items():
        if name in stored and stored[name] != tuple(shape):
            raise InputError(
                f"{path} has mismatched tensors: {name} is {stored[name]}, and {tuple(shape)} by "
                "the sizes of config.json; correct them, or copy the weights again"
            )


def _config_of(values: dict[str, Any], options: dict[str, Any]) -> ReMambaConfig:
    """The configuration that `from_pretrained` goes by."""
    if isinstance(given := options.get("config"), ReMambaConfig):
        return given
    known = inspect.signature(ReMambaConfig.__init__).parameters.keys() - {"self", "kwargs"}
    changes = {name: options[name] for name in known & options.keys()}
    return ReMambaConfig.from_dict({**values, **changes})
