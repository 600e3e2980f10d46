"""TrainArgs: every option of `remamba train`, in groups, checked before any heavy import."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from remamba.compression_config import (
    ADAPTIONS,
    IMPORTANCES,
    PLACEMENTS,
    SELECTORS,
    VALUES,
    CompressionConfig,
)
from remamba.errors import InputError
from remamba.fields import check_value, field_kinds, shown
from remamba.options import add_options, given, own_unless_set
from remamba.train.recipes import recipe_options

UNSET = arg(help_behavior_hint="")
Count = Annotated[int, arg(metavar="N")]
Number = Annotated[float, arg(metavar="X")]
Weight = Annotated[float, arg(metavar="WEIGHT")]
Share = Annotated[float, arg(metavar="SHARE")]
Range = Annotated[
    tuple[float, float] | None, arg(metavar="LO HI", help_behavior_hint=own_unless_set)
]
RecipeName = Literal["none", "sentences", "paper", "released"]
TrainMethod = Literal["remamba", "mamba"]
LoraTarget = Literal["in_proj", "x_proj", "out_proj", "embeddings", "lm_head"]
InFull = Literal["dt", "theta", "compressor"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained, and by which recipe."""

    recipe: RecipeName = "none"
    """Other defaults for all that follows. sentences: the form that wins in docs/EVIDENCE.md;
    paper: as the paper says; released: as its authors' code does (docs/PAPER.md has all three)."""
    method: TrainMethod = "remamba"
    """remamba: both stages; mamba: the plain model on the same data, order and steps."""
    base: Annotated[str, arg(metavar="NAME|DIR")]
    """Model to start from: a directory, the embedded model's name, or a hub name."""
    output: Annotated[str, arg(metavar="DIR")]
    """Directory of the run: checkpoints, log.jsonl, train.json, and in the end the model itself."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What it is trained on."""

    data: Annotated[tuple[str, ...], arg(metavar="FILE [FILE ...]")]
    """Files of JSON lines (also .gz or .xz) or Parquet, or folders made by `remamba data build`."""
    batch_size: Count = 16
    """Documents (or prompts, or texts) of a step, over all processes."""
    accumulate: Count = 1
    """Parts a step's batch is cut into, one after another, to save memory."""
    questions_per_document: Count = 8
    """Questions per document and step: sampled when it has more, repeated when it has fewer."""
    max_length: Count = 8192
    """Tokens of a document, or of a prompt with its response. Texts are cut into such pieces."""
    long_rows: Literal["refuse", "cut", "skip"] = "refuse"
    """A longer document or prompt: refuse, cut (a prompt in its middle), or skip."""
    data_cache: Annotated[str | None, arg(metavar="DIR"), UNSET] = None
    """Keep the tokens of --data here, for later runs on the same files."""
    group_by_length: Annotated[bool, arg(help_behavior_hint="(default: similar ones together)")] = (
        True
    )
    """With --no-group-by-length a batch mixes items of all lengths."""
    workers: Annotated[int | None, arg(metavar="N"), UNSET] = None
    """Processes that prepare batches; 2 on a GPU, else none, when not given."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How long and how fast it learns."""

    max_steps: Annotated[int | None, arg(metavar="N"), UNSET] = None
    """Optimizer steps; give this or --epochs."""
    epochs: Annotated[float | None, arg(metavar="X"), UNSET] = None
    """Passes over the data, in place of --max-steps (1 when neither is given)."""
    stop_accuracy: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """Stop once this share of answers of the last --stop-window steps is right in every token."""
    stop_window: Count = 50
    """Steps that --stop-accuracy looks back."""
    learning_rate: Number = 1e-3
    """Peak learning rate."""
    compressor_learning_rate_scale: Number = 0.5
    """The learning rate of Query, Key, Value and Theta, as a multiple."""
    warmup_steps: Count = 50
    """Steps of linear warm-up."""
    lr_scheduler: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes from its peak to --min-learning-rate-share of it."""
    min_learning_rate_share: Share = 0.0
    """The learning rate at the last step, as a share of the peak."""
    weight_decay: Number = 0.01
    """On matrices; not on norms, biases, A_log, D, dt_bias and Theta."""
    decay_vectors: bool = False
    """Weight decay on those too."""
    betas: Annotated[tuple[float, float], arg(metavar="B1 B2")] = (0.9, 0.95)
    """AdamW's averages."""
    max_grad_norm: Number = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Which parameters learn."""

    parameters: Literal["full", "lora"] = "full"
    """full: everything; lora: low-rank adapters, and what --train-in-full names."""
    lora_rank: Annotated[int, arg(metavar="R")] = 32
    """Rank of the adapters."""
    lora_alpha: Count = 8
    """An adapter counts alpha / rank times."""
    lora_dropout: Share = 0.0
    """Share of an adapter's inputs that is left out in training."""
    lora_targets: tuple[LoraTarget, ...] = ("in_proj", "out_proj", "embeddings", "lm_head")
    """Modules that receive adapters. Tied embeddings and head are untied first."""
    train_in_full: tuple[InFull, ...] = ("dt", "theta", "compressor")
    """Beside the adapters: dt_proj (Mamba-2: dt_bias), Theta, and Query, Key and Value."""
    check_gradients: Annotated[bool, arg(help_behavior_hint="(default: looked at)")] = True
    """With --no-check-gradients training begins without a look at the gradients (gradients.json);
    otherwise it is refused where one of these parameters gets none."""


@dataclass(frozen=True, kw_only=True)
@add_options(
    CompressionConfig,
    {
        "placement": PLACEMENTS,
        "adaption": ADAPTIONS,
        "selector": SELECTORS,
        "value": VALUES,
        "importance": IMPORTANCES,
    },
    # drawn from a range in training; and what is no option any more
    leave_out=("length", "keep_ratio", "score_gradient", "min_prompt_length"),
)
class Compression:
    """How a prompt is compressed between the two stages: the settings of CompressionConfig, and
    how p and rho are drawn."""

    length: Range = None
    """Range p is drawn from, for each row of a step."""
    keep_ratio: Range = None
    """Range rho is drawn from, for each row of a step."""
    keep_ratio_schedule: Literal["uniform", "anneal"] = "uniform"
    """uniform in the range; anneal: geometrically from HI to LO, times U(0.8, 1.2), up to 1."""
    short_prompt: Annotated[tuple[int, float] | None, arg(metavar="N SHARE"), UNSET] = None
    """Rows of up to N tokens have this p, in place of a drawn one."""
    keep_last: Count = 0
    """Tokens at the end of a longer row that the span never reaches into."""
    eval_length: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """p of the saved model; the middle of --length when not given."""
    eval_keep_ratio: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """rho of the saved model; when not given, LO after anneal, else the middle of --keep-ratio."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was given of CompressionConfig's settings, by their names; not p and rho."""
        found = given(self, CompressionConfig)
        return {name: x for name, x in found.items() if name not in ("length", "keep_ratio")}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What counts beside the answer's own loss."""

    score_loss: Weight = 0.0
    """Weight of the loss on the score itself (0.5 is a good value)."""
    score_target: Literal["answer", "evidence"] = "answer"
    """What the score should find: any place of the answer in the document, or all evidence."""
    score_negatives: Literal["document", "batch"] = "document"
    """What the score is to tell it from: the rest of the document, or of all in the pass."""
    stage1_loss: Weight = 0.0
    """Weight of the answer loss of stage 1, the plain model's (1 keeps it able to answer)."""
    document_loss: Weight = 0.0
    """Weight of next-token prediction on the document (needs a whole-document span, or mamba)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how it runs, and what it leaves."""

    seed: Count = 42
    """Of data order, sampled questions, drawn p and rho, and random selection."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast over float32 weights (frozen matrices are held in bfloat16); auto:
    bfloat16 on a GPU, float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more time."""
    save_steps: Count = 500
    """A checkpoint every so many steps, and one at the end; 0: none at all."""
    save_total_limit: Count = 1
    """Checkpoints kept."""
    logging_steps: Count = 20
    """A line on stderr and in log.jsonl every so many steps."""
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Where those lines also go."""
    resume: bool = False
    """Continue the run in --output from its last checkpoint."""
    overwrite: bool = False
    """Replace the run in --output."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


GROUPS = (Model, Data, Optimizer, Adapters, Compression, Losses, Run)
"""In the order of `remamba train --help`."""


@dataclass(frozen=True, kw_only=True, init=False)
class TrainArgs(Run, Losses, Compression, Adapters, Optimizer, Data, Model):
    """Train a ReMamba (or, for comparison, a plain Mamba) on JSON lines or Parquet.

    A row is one of {"prompt", "response"}, {"messages": [{"role", "content"}, ...]} (the last one
    is learnt), {"document", "question", "response"},
    {"document", "questions": [{"question", "response"}, ...]} and {"text"}. Questions may carry
    "evidence" (what holds the answer: quoted from the document, or two character positions, from
    and up to; or a list of these, each of which must be found) and "answer" (the words to look for,
    where the response says more). Texts are joined as they stand: a space between question and
    response belongs to one of them.
    """

    def __init__(self, **given: Any):
        """The options of all groups by their names; what is not given is the recipe's, or has its
        default.

        Raises:
            InputError: an option is unknown, missing or outside its range, or two options
                contradict each other.
        """
        self._check_given(given)
        recipe = recipe_options(given.get("recipe", "none"), given.get("method", "remamba"))
        # how much is kept is given as a share or as a number: the one takes the other's place
        shares = {"keep_ratio", "eval_keep_ratio"}
        for ours, replaced in ((shares, {"num_kept"}), ({"num_kept"}, shares)):
            if ours & given.keys():
                recipe = {name: recipe[name] for name in recipe.keys() - replaced}
        if given.get("selector", "topk") not in ("topk", None):  # windows are of top-K alone
            recipe = {name: recipe[name] for name in recipe.keys() - {"window"}}
        values = {**recipe, **given}
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for name, default in fields.items():
            value = values.get(name, default)
            if value is dataclasses.MISSING:
                raise InputError(f"{_flag(name)} is missing; training needs it")
            object.__setattr__(self, name, value)
        self._check()

    @classmethod
    def _check_given(cls, given: dict[str, Any]) -> None:
        """Raise InputError for options that there are not, and for values of another type."""
        kinds = field_kinds(cls)
        if unknown := sorted(given.keys() - kinds.keys()):
            raise InputError(
                f"{shown(unknown[0])} is no option of training; see remamba train --help"
            )
        for name, value in given.items():
            if name == "data" and isinstance(value, str):
                continue
            check_value(_flag(name), value, kinds[name])

    def _check(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", (self.data,))
        if not self.data:
            raise InputError("--data names no file; give one or more files of JSON lines")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite contradict each other; give one of them")
        if self.max_steps is not None and self.epochs is not None:
            raise InputError("--max-steps and --epochs contradict each other; give one of them")
        self._check_numbers()
        self._check_compression()

    def _check_numbers(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "questions_per_document",
                     "stop_window", "save_total_limit", "logging_steps", "lora_rank",
                     "lora_alpha"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{_flag(name)} = {value} must be at least 1")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "seed", "score_loss",
                     "stage1_loss", "document_loss", "save_steps", "keep_last",
                     "compressor_learning_rate_scale", "workers"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{_flag(name)} = {value} must be 0 or more")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{_flag(name)} = {value} must be above 0")
        if self.max_length < 2:
            raise InputError(f"--max-length = {self.max_length} must be at least 2")
        if not 0 <= self.min_learning_rate_share <= 1:
            raise InputError(
                f"--min-learning-rate-share = {self.min_learning_rate_share} is outside [0, 1]"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"--betas = {self.betas} must both be in [0, 1)")
        if self.stop_accuracy is not None and not 0 < self.stop_accuracy <= 1:
            raise InputError(f"--stop-accuracy = {self.stop_accuracy} is outside (0, 1]")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"--lora-dropout = {self.lora_dropout} is outside [0, 1)")
        if self.parameters == "lora" and not self.lora_targets:
            raise InputError("--lora-targets names nothing; choose at least one of them")
        for name in ("data", "output", "base"):
            if not all([getattr(self, name)] if name != "data" else self.data):
                raise InputError(f"{_flag(name)} is empty; give a path")
        if self.data_cache == "":
            raise InputError("--data-cache is empty; give a directory")

    def _check_compression(self) -> None:
        for name in ("length", "keep_ratio"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1] <= 1:
                raise InputError(
                    f"{_flag(name)} {bounds[0]} {bounds[1]} must be two numbers in (0, 1], "
                    "the lower one first"
                )
        for name in ("eval_length", "eval_keep_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{_flag(name)} = {value} is outside (0, 1]")
        start, num_kept = self.settings.get("start", 0.0), self.settings.get("num_kept")
        if not 0 <= start < 1:
            raise InputError(f"--start = {start} is outside [0, 1)")
        # s + p is looked at beside the base's own settings
        CompressionConfig(**{**self.settings, "start": 0.0})
        if self.keep_ratio_schedule != "uniform" and self.keep_ratio is None:
            raise InputError(
                f"--keep-ratio-schedule {self.keep_ratio_schedule} needs --keep-ratio LO HI"
            )
        if num_kept is not None:
            for name in ("keep_ratio", "eval_keep_ratio"):
                if (value := getattr(self, name)) is not None:
                    raise InputError(
                        f"{_flag(name)} {_spell(value)} speaks of a share, and --num-kept "
                        f"{num_kept} keeps so many of every row; give one of them"
                    )
        if self.short_prompt is not None and not (
            self.short_prompt[0] >= 1 and 0 < self.short_prompt[1] <= 1
        ):
            raise InputError(
                f"--short-prompt {self.short_prompt[0]} {self.short_prompt[1]} must be a number of "
                "tokens and a share in (0, 1]"
            )

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON can hold them."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


RESUMABLE = frozenset(
    {
        *("base", "output", "max_steps", "epochs", "stop_accuracy", "stop_window", "save_steps"),
        *("save_total_limit", "logging_steps", "resume", "overwrite", "workers", "json"),
        *("accumulate", "device", "eval_length", "eval_keep_ratio", "gradient_checkpointing"),
        *("recipe", "check_gradients", "report_to", "data_cache"),
    }
)
"""Options that may differ when a run is resumed; any other would make it another run."""


def check_resumable(args: TrainArgs, recorded: dict[str, Any]) -> None:
    """Raise InputError when `args` would continue another run than the recorded one."""
    # an adapter is read over its base again
    fixed = {"base"} if args.parameters == "lora" else set()
    for name, value in args.to_dict().items():
        if name not in RESUMABLE - fixed and name in recorded and recorded[name] != value:
            raise InputError(
                f"{args.output} was trained with {_flag(name)} {_spell(recorded[name])}, not "
                f"{_spell(value)}; resume with the same, or choose another --output"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
