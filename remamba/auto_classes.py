"""Makes ReMamba known to transformers' Auto classes, without importing transformers for it.

They also find the models that come with the package, by name ("remamba-tiny").

`import remamba` calls `install`. Where the Auto classes are imported already, they are told at
once; else a finder in `sys.meta_path` waits for the modules that define them. So it does not
matter which of the two packages is imported first.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
TOKENIZERS = "transformers.models.auto.tokenization_auto"
BASES = ("transformers.modeling_utils", "transformers.generation.utils")
"""What our models are built from. These import a lot, which may include the Auto classes."""


def install() -> None:
    """AutoConfig, AutoModel and AutoModelForCausalLM know ReMamba, now or once they are imported.

    A second call changes nothing.
    """
    if any(isinstance(finder, AutoClassFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, AutoClassFinder())
    if CONFIGS in sys.modules:
        register_config()
    if MODELS in sys.modules:
        register_models()
    if TOKENIZERS in sys.modules:
        register_tokenizers()


def register_config() -> None:
    """AutoConfig reads our `config.json` from now on."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from remamba.configuration_remamba import ReMambaConfig

    AutoConfig.register(ReMambaConfig.model_type, ReMambaConfig, exist_ok=True)
    find_embedded(AutoConfig, then=_name_models)


def _name_models(config: Any = None) -> None:
    """transformers itself has our models by name, where `transformers serve` and `pipeline` look.

    Args:
        config: what AutoConfig found; nothing is done for another than ours.
    """
    from remamba.configuration_remamba import ReMambaConfig

    if config is not None and not isinstance(config, ReMambaConfig):
        return
    from remamba.modeling_remamba import ReMambaForCausalLM, ReMambaModel

    for known in (ReMambaForCausalLM, ReMambaModel):
        setattr(sys.modules["transformers"], known.__name__, known)


def register_models() -> None:
    """AutoModel and AutoModelForCausalLM make our models from now on."""
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    from remamba.configuration_remamba import ReMambaConfig
    from remamba.modeling_remamba import ReMambaForCausalLM, ReMambaModel

    AutoModel.register(ReMambaConfig, ReMambaModel, exist_ok=True)
    AutoModelForCausalLM.register(ReMambaConfig, ReMambaForCausalLM, exist_ok=True)
    _name_models()
    for auto_class in (AutoModel, AutoModelForCausalLM):
        find_embedded(auto_class)


def register_tokenizers() -> None:
    """AutoTokenizer finds the tokenizers of our embedded models from now on."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    find_embedded(AutoTokenizer)


def find_embedded(auto_class: Any, then: Callable[[Any], None] | None = None) -> None:
    """Let `auto_class.from_pretrained` find the models of the package, and ask no hub for them.

    Args:
        then: called with what it found.
    """
    plain = auto_class.from_pretrained.__func__

    @functools.wraps(plain)
    def from_pretrained(
        cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        name = pretrained_model_name_or_path
        if isinstance(name, str) and "/" not in name:
            from remamba.pretrained import locate

            name = locate(name)
        found = plain(cls, name, *args, **kwargs)
        if then is not None:
            then(found)
        return found

    auto_class.from_pretrained = classmethod(from_pretrained)


class AutoClassFinder:
    """Finds modules as the other finders do, and registers our classes after the right ones.

    Our configuration is registered right after AutoConfig is defined. Our models have to wait if
    the AutoModel classes were imported by a module that our models need and that is therefore
    only half imported itself; they are registered when the last such module is complete.
    """

    def __init__(self) -> None:
        self.half_imported: set[str] = set()
        self.models_wait = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a watched module, from another finder; None for every other module."""
        if fullname not in (CONFIGS, MODELS, TOKENIZERS, *BASES) and not fullname.startswith(
            "remamba."
        ):
            return None
        for finder in sys.meta_path:
            find: Callable[..., ModuleSpec | None] | None = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            if (spec := find(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = cast("Loader", WatchingLoader(spec.loader, self))
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        """Runs the module's code, then registers what can be registered by now."""
        name = module.__name__
        self.half_imported.add(name)
        try:
            loader.exec_module(module)
        finally:
            self.half_imported.discard(name)
        if name == CONFIGS:
            register_config()
        if name == TOKENIZERS:
            register_tokenizers()
        if name == MODELS:
            self.models_wait = True
        if self.models_wait and not self.half_imported:
            self.models_wait = False
            register_models()


class WatchingLoader:
    """Another loader, except that a finder executes the module, which then gets its loader back."""

    def __init__(self, loader: Loader, finder: AutoClassFinder) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        # `python -m` asks the loader for its code, inspect for the source
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.finder.execute(self.loader, module)
