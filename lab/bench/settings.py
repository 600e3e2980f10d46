"""Every option of `remamba bench`, one class a benchmark; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

Count = Annotated[int, arg(metavar="N")]
Counts = Annotated[tuple[int, ...], arg(metavar="N [N ...]")]
Names = Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Machine:
    """What runs, and where the report goes."""

    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes the GPU when there is one."""
    dtype: Dtype = "auto"
    """Of weights and inputs; auto: bfloat16 on a GPU, float32 on a CPU."""
    threads: Annotated[int | None, arg(metavar="N")] = None
    """CPU threads of every contender; torch's own number when not given."""
    seed: Count = 0
    """Of weights and inputs."""


@dataclass(frozen=True)
class Kept(Machine):
    """A report that may be kept as files."""

    output: Annotated[Path | None, arg(metavar="FILE.json")] = None
    """Also write the whole report here, every sample in it."""
    save: Annotated[str | None, arg(metavar="NAME")] = None
    """Keep it as lab/bench/results/NAME_DATE.json and .md of the checkout."""


@dataclass(frozen=True)
class OpsArgs(Kept):
    """Time each op by itself, implementation by implementation, beside its floors and its peers.

    Every implementation is first checked: against the reference in float64 at a short length, with
    its gradients, and at the timed shape against the torch form where memory allows; if one
    differs, no speed is told and the exit code is 1. Then all are timed in turns. On a GPU the
    time is the device's, with cold caches and the host ahead; what the host needs for a call is
    told apart. Floors are the bytes, products and exponentials that any form needs, at the rates
    measured in the same run. mamba_ssm and causal_conv1d stand beside ours where installed.

    Example: remamba bench ops --shapes mamba-130m --lengths 512 2048 --backward
    """

    shapes: Names = ()
    """Published models whose sizes are taken; default: the large ones on a GPU, the two 130m on a
    CPU."""
    lengths: Counts = (512, 2048)
    """Of the scans and the convolution, for --shapes."""
    batch: Count = 1
    """Rows at once, for --shapes."""
    ops: Names = ()
    """Only these ops; default: all."""
    backends: Names = ()
    """Implementations; default: all but the reference. "ref" goes step by step."""
    backward: bool = False
    """For --shapes, also the backward alone (the default cases on a GPU have theirs)."""
    steps: Count = 20
    """Decode steps in one turn on a CPU; told for one."""
    repeats: Annotated[int | None, arg(metavar="N")] = None
    """Turns of each; default: 5 on a CPU, 20 on a GPU."""
    budget: Annotated[float | None, arg(metavar="SECONDS")] = None
    """A slow contender gets fewer turns, so that they take about so long; default: no limit on a
    CPU, 3 on a GPU."""


@dataclass(frozen=True)
class GenerateArgs(Kept):
    """Time prefill and decoding beside transformers, mamba_ssm and the bare matrix products.

    Models of published shapes get random weights. It is first checked that remamba and its peers,
    on the very same weights, give the same logits, in the prefill and along forced tokens; if they
    do not, no speed is told and the exit code is 1. Then the contenders are timed in turns.

    prefill: the whole prompt into a cache, and the last token's logits. plain: compression off;
    two-stages: p = 0.18, rho = 0.009; products: F.linear of every projection, which is what would
    be left if all the rest cost nothing. decode: engine (greedy, to the end), generate, and plain
    (forced steps through the model); the time to the first token stands beside them.

    Example: remamba bench generate --shapes mamba-130m mamba2-130m --lengths 512 2048
    """

    shapes: Names = ()
    """Default: mamba-2.8b mamba2-2.7b mamba-130m on a GPU, the two 130m on a CPU."""
    what: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    """What is timed."""
    lengths: Counts = ()
    """Prompts of the prefill; default: 1024 2048 4096 6144 8192 on a GPU, 512 2048 on a CPU."""
    batches: Counts = ()
    """Rows of the decoding; default: 1 16 on a GPU, 1 on a CPU."""
    new_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Tokens of one turn of decoding, of which at most 32 are forced; default: 128 on a GPU, 32 on
    a CPU."""
    peers: bool = True
    """Whether transformers (and mamba_ssm, where installed) are checked and timed too."""
    mambapy: bool = False
    """Also time transformers with use_mambapy (Mamba shapes)."""
    repeats: Annotated[int | None, arg(metavar="N")] = None
    """Turns of each contender after the warm-up; default: 5 on a CPU, 7 on a GPU."""
    budget: Annotated[float | None, arg(metavar="SECONDS")] = None
    """A slow contender gets fewer turns, so that they take about so long, and a peer that would
    need more for one prefill is left out; default: no limit on a CPU, 4 on a GPU."""


@dataclass(frozen=True)
class StepArgs(Kept):
    """Time a training step's forward and backward, with its peak memory, beside mamba_ssm.

    All parameters of a published shape have gradients, every token of random rows is predicted,
    nothing is checkpointed, and there is no optimizer. Loss and gradients are first compared with
    mamba_ssm's, where it is installed; if they differ, no speed is told and the exit code is 1.

    Example: remamba bench step --shapes mamba-130m --rows 8 --tokens 2048
    """

    shapes: Names = ()
    """Default: the two 130m, mamba-2.8b and mamba2-2.7b on a GPU, the two tiny ones on a CPU."""
    rows: Annotated[int | None, arg(metavar="N")] = None
    """Of a step; default: 8 of a 130m, 1 of the large ones, 2 on a CPU."""
    tokens: Annotated[int | None, arg(metavar="N")] = None
    """Of a row; default: 2048 of a 130m, 4096 of the large ones, 64 on a CPU."""
    peers: bool = True
    """Whether mamba_ssm stands beside ours where it is installed."""
    repeats: Annotated[int | None, arg(metavar="N")] = None
    """Turns of each contender after the warm-up; default: 7."""


@dataclass(frozen=True)
class LongArgs(Kept):
    """Read a very long prompt: time, peak memory, and whether the result is still right.

    model: a prompt is prefilled in pieces on a large shape; peak memory. equal: on small shapes in
    float32, pieces through the default implementations equal the torch form on the whole prompt.
    ops: one call of each op over the whole length, whose tensors pass 2^31 elements, equals the
    torch form on blocks of channels at both ends and in the middle, its gradients too.

    Example: remamba bench long --tokens 20000 --shape mamba-tiny --channels 256 --device cpu
    """

    tokens: Count = 1_000_000
    """Length of the prompt."""
    piece_length: Count = 16384
    """Tokens the backbone reads at once."""
    shape: Annotated[str, arg(metavar="NAME")] = "mamba-2.8b"
    """The large shape."""
    small: Names = ("mamba-tiny", "mamba2-tiny")
    """The small shapes."""
    channels: Count = 2560
    """Of the single ops."""
    what: tuple[Literal["model", "equal", "ops"], ...] = ("model", "equal", "ops")
    """Parts to run."""


@dataclass(frozen=True)
class GapsArgs(Kept):
    """Time how long streams wait for a token while long documents enter the engine beside them.

    Some streams write without end; then documents with a question each come, all at once. Each
    step of the engine reads a piece of a document and draws a token for every stream, so that a
    step's time is the gap between two tokens. Told are the gaps before the documents come, and
    those until all questions have their answer's first token.

    Example: remamba bench gaps --documents 1 --tokens 64000 --at-once 256
    """

    model: Annotated[str, arg(metavar="NAME")] = "remamba-tiny"
    """A shape (mamba-2.8b, random weights), or a model's directory or name."""
    method: Literal["plain", "remamba"] = "remamba"
    """How the documents are read."""
    documents: Count = 8
    """How many come at once."""
    tokens: Count = 64_000
    """Of each document."""
    streams: Count = 4
    """How many write meanwhile."""
    at_once: Counts = ()
    """Tokens that a step reads; default: 1024 to 8192 on a GPU, 128 to 512 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Fig6Args(Machine):
    """Figure 6: tokens a second by the length of the input, at a fixed length of the output.

    Mamba, ReMamba (p = 0.18, rho = 0.009), Mamba-2 and ReMamba-2 through the engine, and a Llama
    through transformers with a static cache, SDPA and the compiled decode step; random weights of
    the true shapes, batch 1, greedy. Every contender is warmed up and synchronised, prefill and
    decode are told apart, and the speed is that of the whole answer: new tokens over all the time.

    Writes fig6.json, fig6.md and fig6.png into --output.

    Example: remamba bench fig6 --scale tiny --output fig6-tiny
    """

    output: Annotated[Path, arg(metavar="DIR")]
    """Directory of the figure."""
    scale: Literal["tiny", "paper"] = "paper"
    """paper: the 3b class on a GPU; tiny: small shapes in under a minute on a CPU."""
    shapes: Names = ()
    """Other shapes than the scale's: each Mamba is timed plain and with two stages."""
    lengths: Counts = ()
    """Input lengths; the scale's when not given."""
    new_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Output length; the scale's when not given (paper: 1024)."""
    repeats: Annotated[int | None, arg(metavar="N")] = None
    """Timed runs after the warm-up; the scale's when not given (paper: 3)."""
    compile: bool = True
    """Whether the Llama's decode step is compiled; --no-compile runs it eagerly."""
    overwrite: bool = False
    """Replace a figure that lies in --output."""
