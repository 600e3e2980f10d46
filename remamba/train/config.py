"""TrainArgs: every option of `remamba train`, checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from remamba.errors import InputError

OWN = arg(help_behavior_hint="(default: the model's own)")
UNSET = arg(help_behavior_hint="")
Count = Annotated[int, arg(metavar="N")]
Number = Annotated[float, arg(metavar="X")]
Weight = Annotated[float, arg(metavar="WEIGHT")]
LoraTarget = Literal["in_proj", "x_proj", "out_proj", "embeddings", "lm_head"]
InFull = Literal["dt", "theta", "compressor"]


@dataclass(frozen=True)
class TrainArgs:
    """Train a ReMamba (or, for comparison, a plain Mamba) on JSON lines or Parquet.

    A row is one of {"prompt", "response"}, {"messages": [{"role", "content"}, ...]} (the last one
    is learnt), {"document", "question", "response"},
    {"document", "questions": [{"question", "response"}, ...]} and {"text"}. Questions may carry
    "evidence" (what holds the answer: quoted from the document, or two character positions, from
    and up to; or a list of these, each of which must be found) and "answer" (the words to look for,
    where the response says more). Texts are joined as they stand: a space between question and
    response belongs to one of them.

    Raises:
        InputError: an option is outside its range, or two options contradict each other.
    """

    base: Annotated[str, arg(metavar="NAME|DIR")]
    """Model to start from: a directory, the embedded model's name, or a hub name."""
    data: Annotated[tuple[str, ...], arg(metavar="FILE [FILE ...]")]
    """Files of JSON lines (also .gz or .xz) or Parquet, or folders made by `remamba data build`."""
    output: Annotated[str, arg(metavar="DIR")]
    """Directory of the run: checkpoints, log.jsonl, train.json, and in the end the model itself."""
    method: Literal["remamba", "mamba"] = "remamba"
    """remamba: both stages; mamba: the plain model on the same data, order and steps."""
    recipe: Literal["none", "paper", "released"] = "none"
    """Other defaults: as the paper says, or as its authors' code does (docs/PAPER.md has both)."""

    parameters: Literal["full", "lora"] = "full"
    """full: everything; lora: low-rank adapters, and what --train-in-full names."""
    lora_rank: Annotated[int, arg(metavar="R")] = 32
    """Rank of the adapters."""
    lora_alpha: Annotated[int, arg(metavar="N")] = 8
    """An adapter counts alpha / rank times."""
    lora_dropout: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of an adapter's inputs that is left out in training."""
    lora_targets: tuple[LoraTarget, ...] = ("in_proj", "out_proj", "embeddings", "lm_head")
    """What gets an adapter. Tied embeddings and head part first."""
    train_in_full: tuple[InFull, ...] = ("dt", "theta", "compressor")
    """Beside the adapters: dt_proj (Mamba-2: dt_bias), Theta, and Query, Key and Value."""
    check_gradients: Annotated[bool, arg(help_behavior_hint="(default: checked)")] = True
    """Before the first step, refuse to train what gets no gradient (see gradients.json)."""

    max_steps: Annotated[int | None, arg(metavar="N"), UNSET] = None
    """Optimizer steps; give this or --epochs."""
    epochs: Annotated[float | None, arg(metavar="X"), UNSET] = None
    """Passes over the data, in place of --max-steps (1 when neither is given)."""
    batch_size: Count = 16
    """Documents (or prompts, or texts) of a step, over all processes."""
    accumulate: Count = 1
    """Parts a step's batch is cut into, one after another, to save memory."""
    questions_per_document: Count = 8
    """Questions of a document in a step; more are sampled, few are repeated."""
    max_length: Count = 8192
    """Tokens of a document, or of a prompt with its response. Texts are cut into such pieces."""
    long_rows: Literal["refuse", "cut", "skip"] = "refuse"
    """A longer document or prompt: refuse, cut (a prompt in its middle), or skip."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used and count them, in place of stopping at the first."""
    data_cache: Annotated[str | None, arg(metavar="DIR"), UNSET] = None
    """Keep the tokens of --data here, for later runs on the same files."""
    group_by_length: Annotated[bool, arg(help_behavior_hint="(default: similar ones together)")] = (
        True
    )
    """With --no-group-by-length a batch mixes items of all lengths."""

    learning_rate: Number = 1e-3
    """Peak learning rate."""
    compressor_learning_rate_scale: Number = 0.5
    """The learning rate of Query, Key, Value and Theta, as a multiple."""
    warmup_steps: Count = 50
    """Steps of linear warm-up."""
    lr_scheduler: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes from its peak to --min-learning-rate-share of it."""
    min_learning_rate_share: Annotated[float, arg(metavar="SHARE")] = 0.0
    """The learning rate at the last step, as a share of the peak."""
    weight_decay: Number = 0.01
    """On matrices; not on norms, biases, A_log, D, dt_bias and Theta."""
    decay_vectors: bool = False
    """Weight decay on those too."""
    betas: Annotated[tuple[float, float], arg(metavar="B1 B2")] = (0.9, 0.95)
    """AdamW's averages."""
    max_grad_norm: Number = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    seed: Count = 42
    """Of data order, sampled questions, drawn p and rho, and random selection."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast over float32 weights (frozen matrices are held in bfloat16); auto:
    bfloat16 on a GPU, float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more time."""

    length: Annotated[tuple[float, float] | None, arg(metavar="LO HI"), OWN] = None
    """Range p is drawn from, for each row of a step."""
    keep_ratio: Annotated[tuple[float, float] | None, arg(metavar="LO HI"), OWN] = None
    """Range rho is drawn from, for each row of a step."""
    num_kept: Annotated[int | None, arg(metavar="K"), OWN] = None
    """Tokens kept of every row, whatever its length; takes the place of --keep-ratio."""
    keep_ratio_schedule: Literal["uniform", "anneal", "stages"] = "uniform"
    """uniform in the range; anneal: geometrically from HI to LO, times U(0.8, 1.2), up to 1;
    stages: HI, then half of it, down to LO, each left when --stage-accuracy is reached."""
    stage_accuracy: Annotated[float, arg(metavar="SHARE")] = 0.9
    """Share of answers of the last --stop-window steps that must be right to leave a stage."""
    keep_ratio_length: Annotated[int | None, arg(metavar="N"), UNSET] = None
    """Longer rows keep as many tokens as one of N tokens would, but no share below LO."""
    short_prompt: Annotated[tuple[int, float] | None, arg(metavar="N SHARE"), UNSET] = None
    """Rows of up to N tokens have this p, in place of a drawn one."""
    keep_last: Count = 0
    """Tokens at the end of a longer row that the span never reaches into."""
    start: Annotated[float | None, arg(metavar="SHARE"), OWN] = None
    """Where the span starts [s]."""
    placement: Annotated[
        Literal["replace", "append", "before_question"] | None,
        arg(metavar="replace|append|before_question"),
        OWN,
    ] = None
    """Where the kept vectors stand."""
    adaption: Annotated[
        Literal["selective", "exact", "multiplicative", "none"] | None,
        arg(metavar="selective|exact|multiplicative|none"),
        OWN,
    ] = None
    """How the scores enter stage 2."""
    selector: Annotated[
        Literal["topk", "random", "fixed", "drop", "none"] | None,
        arg(metavar="topk|random|fixed|drop|none"),
        OWN,
    ] = None
    """Which states are kept."""
    window: Annotated[int | None, arg(metavar="N"), OWN] = None
    """A token found brings the N - 1 before it, so that words of several tokens stay whole."""
    value: Annotated[Literal["hidden", "residual"] | None, arg(metavar="hidden|residual"), OWN] = (
        None
    )
    """What a kept vector is: Value of its state (the paper), or that plus the token's embedding."""
    importance: Annotated[Literal["relu", "relative"] | None, arg(metavar="relu|relative"), OWN] = (
        None
    )
    """alpha, by which a kept vector counts: ReLU of its score (the paper), or its softmax weight
    over the best one's."""
    score_gradient: Annotated[Literal["scaled", "true"] | None, arg(metavar="scaled|true"), OWN] = (
        None
    )
    """Gradient into the scores."""
    eval_length: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """p of the saved model; the middle of --length when not given."""
    eval_keep_ratio: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """rho of the saved model; when not given, LO after anneal, else the middle of --keep-ratio."""

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
    stop_accuracy: Annotated[float | None, arg(metavar="SHARE"), UNSET] = None
    """Stop once this share of answers of the last --stop-window steps is right in every token."""
    stop_window: Count = 50
    """Steps that --stop-accuracy looks back."""

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
    workers: Annotated[int | None, arg(metavar="N"), UNSET] = None
    """Processes that prepare batches; 2 on a GPU, else none, when not given."""
    audit: Count = 0
    """Print so many examples as the model sees them, with their targets, before training."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""

    def __post_init__(self) -> None:
        if self.recipe != "none" and type(self) is TrainArgs:
            raise InputError(
                f"recipe={self.recipe!r} alone changes no default; make the arguments with "
                f"remamba.train.recipes.recipe_type({self.recipe!r}, {self.method!r})(...)"
            )
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
                     "lora_alpha", "num_kept", "window"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{_flag(name)} = {value} must be at least 1")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "seed", "score_loss",
                     "stage1_loss", "document_loss", "save_steps", "audit",
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
        if self.start is not None and not 0 <= self.start < 1:
            raise InputError(f"--start = {self.start} is outside [0, 1)")
        if self.keep_ratio_schedule != "uniform" and self.keep_ratio is None:
            raise InputError(
                f"--keep-ratio-schedule {self.keep_ratio_schedule} needs --keep-ratio LO HI"
            )
        if self.num_kept is not None:
            for name, unset in (("keep_ratio_schedule", "uniform"), ("eval_keep_ratio", None)):
                if (value := getattr(self, name)) != unset:
                    raise InputError(
                        f"{_flag(name)} {value} speaks of a share, and --num-kept {self.num_kept} "
                        "keeps so many of every row; give one of them"
                    )
        if not 0 < self.stage_accuracy <= 1:
            raise InputError(f"--stage-accuracy = {self.stage_accuracy} is outside (0, 1]")
        if self.keep_last < 0:
            raise InputError(f"--keep-last = {self.keep_last} must be 0 or more")
        if self.keep_ratio_length is not None and self.keep_ratio_length < 1:
            raise InputError(f"--keep-ratio-length = {self.keep_ratio_length} must be at least 1")
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
        *("save_total_limit", "logging_steps", "resume", "overwrite", "workers", "audit", "json"),
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
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
