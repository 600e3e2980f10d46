"""ReMambaConfig (`model_type = "remamba"`): the sizes of a model, with its CompressionConfig."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from remamba.compression_config import CompressionConfig, one_of
from remamba.errors import InputError
from remamba.fields import LARGEST, check_value, shown
from remamba.files import make_directory, write_whole

BACKBONES = ("mamba", "mamba2", "falcon_mamba")
LOADER = "remamba_auto.py"
"""Written beside a configuration, so that transformers finds the package by itself."""
LOADER_TEXT = '''"""The classes of this checkpoint, from their package (pip install remamba)."""

from remamba import ReMambaConfig, ReMambaForCausalLM, ReMambaModel

__all__ = ["ReMambaConfig", "ReMambaForCausalLM", "ReMambaModel"]
'''
AUTO_MAP = {
    "AutoConfig": "remamba_auto.ReMambaConfig",
    "AutoModel": "remamba_auto.ReMambaModel",
    "AutoModelForCausalLM": "remamba_auto.ReMambaForCausalLM",
}
COMPRESSOR_INITS = ("released", "paper", "tied")
MOST_LAYERS = 10_000
FIELDS: dict[str, tuple[Any, float | None, float | None]] = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "state_size", "conv_kernel", "n_groups", "head_dim",
         "chunk_size"),
        (int, 1, LARGEST),
    ),
    "num_hidden_layers": (int, 1, MOST_LAYERS),
    "intermediate_size": (int | None, 1, LARGEST),
    "num_heads": (int | None, 0, LARGEST),
    "expand": (float, 0.0, LARGEST),
    **dict.fromkeys(
        ("use_bias", "use_conv_bias", "residual_in_fp32", "tie_word_embeddings", "use_cache"),
        (bool, None, None),
    ),
    **dict.fromkeys(
        ("layer_norm_epsilon", "mixer_rms_eps", "initializer_range", "time_step_floor"),
        (float, 0.0, 1.0),
    ),
    **dict.fromkeys(("time_step_min", "time_step_max"), (float, 0.0, LARGEST)),
    **dict.fromkeys(
        ("backbone_type", "compressor_init", "question_template"), (str, None, None)
    ),
    "method": (str | None, None, None),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), (int | None, 0, None)),
    "eos_token_id": (int | list[int] | None, 0, None),
}  # fmt: skip
"""Type, least and greatest value of each setting that needs no other to be judged."""
COMMON_FIELDS: dict[str, tuple[Any, float | None, float | None]] = {
    **dict.fromkeys(
        ("output_hidden_states", "return_dict", "output_attentions", "is_encoder_decoder"),
        (bool | None, None, None),
    ),
    **dict.fromkeys(("chunk_size_feed_forward", "num_labels"), (int | None, 0, MOST_LAYERS)),
    **dict.fromkeys(("id2label", "label2id", "auto_map"), (dict | None, None, None)),
    "architectures": (list[str] | None, None, None),
    **dict.fromkeys(
        ("transformers_version", "problem_type"),
        (str | None, None, None),
    ),
}
"""The same of what transformers keeps in every configuration."""


class ReMambaConfig(PretrainedConfig):
    """Configuration of a ReMamba: a Mamba, Mamba-2 or Falcon-Mamba backbone plus the compression.

    Names are those of transformers' MambaConfig and Mamba2Config; `backbone_type` tells which
    fields count. `method` names the way of reading where nothing else is asked for
    (`remamba.methods.base.METHODS`), `compression` is a dict of CompressionConfig's fields, the
    settings of the method `remamba`; `question_template` is how the command line writes a question
    behind a document.

    Raises:
        InputError: the sizes do not fit one another, or an option is unknown.
    """

    model_type = "remamba"
    # TRL asks for it where a model is given by name; save_pretrained sets it
    auto_map = {}  # type: ignore[var-annotated]
    # Trainer.predict and compute_metrics get the logits alone
    keys_to_ignore_at_inference = [
        "labels", "correct", "score_loss", "stage1_loss", "stage1_correct", "document_loss",
        "cache_params", "hidden_states", "kept", "scores", "span", "chosen",
    ]  # fmt: skip

    def __init__(
        self,
        backbone_type: str = "mamba",
        vocab_size: int = 50280,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        intermediate_size: int | None = None,
        time_step_rank: int | str = "auto",
        n_groups: int = 1,
        head_dim: int = 64,
        num_heads: int | None = None,
        chunk_size: int = 64,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        layer_norm_epsilon: float = 1e-5,
        mixer_rms_eps: float = 1e-6,
        residual_in_fp32: bool = True,
        initializer_range: float = 0.1,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        time_step_limit: tuple[float, float] | list[float] = (0.0, math.inf),
        compression: dict[str, Any] | CompressionConfig | None = None,
        method: str | None = None,
        compressor_init: str = "released",
        question_template: str = "\n\nQuestion: {question}\nAnswer:",
        tie_word_embeddings: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        one_of("backbone_type", backbone_type, BACKBONES)
        given = locals()
        for name, (kind, low, high) in FIELDS.items():
            check_value(name, given[name], kind, low, high)
        check_common(kwargs)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ids = given[name] if isinstance(given[name], list) else [given[name]]
            for token_id in ids:
                check_value(name, token_id, int | None, 0, vocab_size - 1)
        one_of("compressor_init", compressor_init, COMPRESSOR_INITS)
        self.backbone_type = backbone_type
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.state_size = state_size
        self.conv_kernel = conv_kernel
        self.expand = expand
        self.intermediate_size = intermediate_size or int(expand * hidden_size)
        if not 1 <= self.intermediate_size <= LARGEST:
            raise InputError(
                f"expand = {expand} times hidden_size = {hidden_size} must be from 1 to {LARGEST:,}"
            )
        check_value("time_step_rank", time_step_rank, int | Literal["auto"], 1, LARGEST)
        self.time_step_rank = (
            math.ceil(hidden_size / 16) if time_step_rank == "auto" else int(time_step_rank)
        )
        if not 0 < time_step_min <= time_step_max:
            raise InputError(
                f"time_step_min = {time_step_min} must be above 0 and at most time_step_max = "
                f"{time_step_max}"
            )
        self.n_groups = n_groups
        self.head_dim = head_dim
        self.num_heads = num_heads or self.intermediate_size // head_dim
        self.chunk_size = chunk_size
        self.use_bias = use_bias
        self.use_conv_bias = use_conv_bias
        self.layer_norm_epsilon = layer_norm_epsilon
        self.mixer_rms_eps = mixer_rms_eps
        self.residual_in_fp32 = residual_in_fp32
        self.initializer_range = initializer_range
        self.time_step_min = time_step_min
        self.time_step_max = time_step_max
        self.time_step_floor = time_step_floor
        # JSON has no infinity: an open upper limit is stored as null
        self.time_step_limit = _limits(time_step_limit)
        self.method, self.compression = _reading(method, compression)
        self.compressor_init = compressor_init
        if "{question}" not in question_template:
            raise InputError(f"question_template={shown(question_template)} lacks {{question}}")
        self.question_template = question_template
        self.use_cache = use_cache
        if backbone_type == "mamba2":
            if self.num_heads * head_dim != self.intermediate_size:
                raise InputError(
                    f"num_heads * head_dim = {self.num_heads * head_dim} must equal "
                    f"intermediate_size = {self.intermediate_size}"
                )
            if self.num_heads % n_groups:
                raise InputError(
                    f"num_heads = {self.num_heads} is no multiple of n_groups = {n_groups}"
                )
        try:
            super().__init__(  # type: ignore[call-arg]
                tie_word_embeddings=tie_word_embeddings,
                pad_token_id=pad_token_id,
                bos_token_id=bos_token_id,
                eos_token_id=eos_token_id,
                **kwargs,
            )
        except InputError:
            raise
        except Exception as error:  # whatever transformers raises of the settings that are its own
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the configuration holds a setting that transformers refuses ({reason}); leave it "
                "out"
            ) from error

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write config.json, and the file by which transformers finds the package.

        `AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)` then needs no
        `import remamba`, and names the package where it is not installed.
        """
        self.auto_map = dict(AUTO_MAP)
        folder = Path(save_directory)
        make_directory(folder)
        write_whole(folder / LOADER, LOADER_TEXT)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: `save_pretrained` always tells the Auto classes where this class is."""

    @property
    def reading(self) -> dict[str, Any]:
        """`method` and `compression`, as an adapter keeps them beside its weights."""
        return {"method": self.method, "compression": dict(self.compression)}

    @reading.setter
    def reading(self, values: dict[str, Any]) -> None:
        """Take over what `reading` gave, or the settings alone that version 0.1 kept."""
        self.method, self.compression = reading_of(values)

    @property
    def compression_config(self) -> CompressionConfig:
        """The stored compression settings, validated."""
        return CompressionConfig.from_dict(self.compression)

    @property
    def dt_limit(self) -> tuple[float, float]:
        """Bounds of Mamba-2's Delta after softplus; (0, inf) leaves it alone."""
        low, high = self.time_step_limit
        return float(low or 0), math.inf if high is None else high


def check_common(values: dict[str, Any]) -> None:
    """Raise InputError for what no configuration of transformers' can have, of any model.

    Looked at first, since transformers makes a table of as many names as `num_labels` says.
    """
    for name, (kind, low, high) in COMMON_FIELDS.items():
        if name in values:
            check_value(name, values[name], kind, low, high)
    for name in ("dtype", "torch_dtype"):
        value = values.get(name)
        found = getattr(torch, value, None) if isinstance(value, str) else value
        is_float = isinstance(found, torch.dtype) and found.is_floating_point
        if value is not None and value != "auto" and not is_float:
            raise InputError(
                f"{name} = {shown(value)} must be a kind of float that torch has, by its name"
            )
    quantization = values.get("quantization_config")
    if not (quantization is None or isinstance(quantization, dict)) and not hasattr(
        quantization, "to_dict"
    ):
        raise InputError(
            f"quantization_config = {shown(quantization)} must hold settings by name; leave it out"
        )


def _limits(limits: Any) -> list[float | None]:
    """Bounds of Delta as they are stored: an open upper one is None."""
    is_pair = isinstance(limits, tuple | list) and len(limits) == 2
    low, high = limits if is_pair else (limits, limits)
    is_open = high is None or (isinstance(high, float) and high == math.inf)
    for bound in (low, 0.0 if is_open else high):
        is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if not (is_pair and is_number and 0 <= bound <= LARGEST):
            raise InputError(
                f"time_step_limit = {shown(limits)} must be two numbers of at least 0, of which "
                "the second may be null for no bound"
            )
    if not is_open and high < low:
        raise InputError(f"time_step_limit = {shown(limits)}: its second number is the lower one")
    return [float(low), None if is_open else float(high)]


def reading_of(values: Any) -> tuple[str, dict[str, Any]]:
    """The own method's name and `remamba`'s settings, from what `ReMambaConfig.reading` gave.

    Raises:
        InputError: they are none, or a setting is outside its range.
    """
    check_value("the reading", values, dict)
    if "compression" not in values:  # the settings alone, which version 0.1 kept
        return _reading(None, values)
    if unknown := sorted(set(values) - {"method", "compression"}):
        raise InputError(f"unknown part {shown(unknown[0])} of a reading; leave it out")
    return _reading(values.get("method"), values["compression"])


def _reading(
    method: str | None, compression: dict[str, Any] | CompressionConfig | None
) -> tuple[str, dict[str, Any]]:
    """The own method's name and `remamba`'s settings by name.

    In version 0.1 a model that reads plainly, or drops the span, had a selector of that name.
    """
    if isinstance(compression, CompressionConfig):
        compression = compression.to_dict()
    if compression is not None and not isinstance(compression, dict):
        raise InputError(f"compression = {shown(compression)} must hold settings by name")
    settings = dict(compression or {})
    if settings.get("selector") in ("none", "drop"):
        former = {"none": "plain", "drop": "drop"}[settings.pop("selector")]
        method = method or former
        settings.pop("window", None)
    method = "remamba" if method is None else method
    if not isinstance(method, str) or not method:
        raise InputError(f"method = {shown(method)} must be the name of a method")
    return method, CompressionConfig.from_dict(settings).to_dict()
