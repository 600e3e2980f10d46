"""Make the untrained base of a small ReMamba model: a tokenizer for planted data, random weights.

The tokenizer is a byte-level BPE trained on books and on rows of the planted suite. The words that
training's facts are made of (names, places, colours, numbers of two digits ...) are fed to it so
often that nearly each becomes one token: a small model then copies an answer in one step. Words of
the other splits get no such weight: they are spelled as prose taught it. With --books-alone no
word gets any, for models that are to read names and values that they never saw.

The weights are random, with a start from which recall is learnt within thousands of steps instead
of millions (--no-recall-start leaves it out): see `recall_start`.

Example:

    python lab/planted/make_base.py --family mamba --size 10m --books train-*.jsonl.xz --output base
    remamba train --base base ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.planted import prose
from lab.planted.build import load_tokenizer
from lab.planted.language import words_of
from lab.planted.suite import CLOSED, Options, Suite, make_tasks
from lab.planted.task import SPLITS, Source
from remamba.errors import InputError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from remamba import ReMambaConfig, ReMambaForCausalLM

END, PAD = "<|endoftext|>", "<|pad|>"  # ids 0 and 1

# A word takes the space before it; 's and the like stand apart; line breaks come in one piece.
WORDS = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+(?!\S)|[^\S\n]+"
)


@dataclass(frozen=True)
class Size:
    """Width and layers of a model; with 8,192 tokens both families have about as many parameters
    as the size's name says."""

    hidden_size: int
    layers: int


SIZES = {"2m": Size(128, 6), "4m": Size(256, 4), "10m": Size(384, 6), "16m": Size(512, 6)}
STATES = {"mamba": 32, "mamba2": 64}  # the state of a channel


def fact_words(split: str) -> list[str]:
    """Every word that the facts of a split are made of, with the space before."""
    return [" " + word for word in words_of(split)]


def planted_rows(
    books: list[list[str]], classes: Path | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Endless rows of all tasks' training split; of few-shot if there are labelled questions."""
    names = tuple(name for name in CLOSED if name != "few-shot" or classes is not None)
    options = Options(
        tasks=names, tokens=(150, 600), seed=seed, facts_per_1000=60.0, classes=classes
    )
    lengths = prose.Lengths(None)
    source = Source(prose.Prose(books, lengths), lengths, "train")
    suite = Suite(source, options, make_tasks(options))
    for number in itertools.count():
        yield suite.make(number).row


def training_text(
    books: list[list[str]],
    megabytes: float,
    word_weight: int,
    seed: int,
    classes: Path | None,
    books_alone: bool = False,
) -> Iterator[str]:
    """A sample of the books, and unless these are all: two fifths as much of planted rows, and the
    words of the facts many times."""
    rng = random.Random(seed)
    paragraphs = [paragraph for book in books for paragraph in book]
    rng.shuffle(paragraphs)
    room = megabytes * 1e6
    for paragraph in paragraphs:
        yield paragraph + "\n\n"
        room -= len(paragraph)
        if room < 0:
            break
    if books_alone:
        return
    room = megabytes * 1e6 * 2 / 5
    for row in planted_rows(books, classes, seed):
        asked = [question["question"] + question["response"] for question in row["questions"]]
        text = row["document"] + "".join(asked)
        yield text
        room -= len(text)
        if room < 0:
            break
    for word in fact_words("train"):
        yield word * word_weight


def train_tokenizer(
    books: list[list[str]],
    vocab_size: int,
    *,
    megabytes: float = 10.0,
    word_weight: int = 2000,
    seed: int = 0,
    classes: Path | None = None,
    books_alone: bool = False,
) -> Tokenizer:
    """Train the byte-level BPE tokenizer, see `training_text`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = training_text(books, megabytes, word_weight, seed, classes, books_alone)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer as a directory that `AutoTokenizer.from_pretrained` reads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def tokens_per_word(tokenizer: Any, words: Sequence[str]) -> float:
    """Mean number of tokens of the words."""
    return sum(len(tokenizer.encode(word).ids) for word in words) / len(words)


def _normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    import torch

    weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))


def _uniform(
    shape: Sequence[int], low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    import torch

    return torch.empty(tuple(shape)).uniform_(low, high, generator=generator)


def _step_bias(step: torch.Tensor) -> torch.Tensor:
    """What softplus turns into the time step."""
    import torch

    return step + torch.log(-torch.expm1(-step))


def recall_start(model: ReMambaForCausalLM, generator: torch.Generator) -> None:
    """Draw weights from which recall is near.

    In every layer B begins as C one token back, while C and x look at the token itself: what
    followed a token is written under that token, and the same token asked again reads it.
    docs/LOG.md has what this start gains.
    """
    import torch

    config: Any = model.config
    start = _start_mamba2 if config.backbone_type == "mamba2" else _start_mamba
    with torch.no_grad():
        _normal(model.backbone.embeddings.weight, 0.05, generator)
        for layer in model.backbone.layers:
            start(layer.mixer, config, generator)


def _start_mamba(mixer: Any, config: ReMambaConfig, generator: torch.Generator) -> None:
    """In Mamba B, C and x all come from the convolved channels. Half of these look at the token,
    half are their copies that look at the one before it; C reads the first half, and B the second
    with the same weights. x_proj's rows are [dt (r), B (n), C (n)].

    out_proj leans to the transpose of in_proj, so that what was read comes out as the token it
    went in as; all channels are slow. With keys twice as large as here, the pairs of
    `recall_start` took 203 steps with half of the channels local, 127 with all slow, and 70 with
    out_proj's lean too (one seed).
    """
    hidden, states = config.hidden_size, config.state_size
    rank, inner = config.time_step_rank, mixer.out_proj.weight.shape[1]
    half = inner // 2
    projection, taps = mixer.in_proj.weight, mixer.conv1d.weight  # (2 e, d), (e, 1, w)
    _normal(projection, 0.7 * hidden**-0.5, generator)
    projection[half:inner] = projection[:half]
    _normal(mixer.out_proj.weight, 0.7 * (inner * config.num_hidden_layers) ** -0.5, generator)
    mixer.out_proj.weight[:, :half] += 0.5 * projection[:half].T
    mixer.out_proj.weight[:, half:] *= 0.3
    _normal(taps, 0.09, generator)
    taps[:half, 0, -1] += 1.0
    taps[half:, 0, -2] += 1.0
    if mixer.conv1d.bias is not None:
        mixer.conv1d.bias.zero_()

    key = mixer.x_proj.weight.new_empty(states, half)
    _normal(key, half**-0.5, generator)
    key -= key.mean(dim=1, keepdim=True)  # SiLU's mean would make all keys alike
    rows = mixer.x_proj.weight
    _normal(rows[:rank], inner**-0.5, generator)
    rows[rank:] = 0.0
    rows[rank : rank + states, half:] = key
    rows[rank + states :, :half] = key

    mixer.A_log.copy_(_uniform((inner, 1), 0.1, 1.0, generator).log().expand_as(mixer.A_log))
    step = _uniform((inner,), math.log(0.01), math.log(0.1), generator).exp()
    mixer.dt_proj.bias.copy_(_step_bias(step))
    mixer.D.fill_(1.0)


def _start_mamba2(mixer: Any, config: ReMambaConfig, generator: torch.Generator) -> None:
    """in_proj's rows are [gate (e), x (e), B (g n), C (g n), dt (h)]; conv1d's channels [x, B, C].

    Half of the heads are slow (facts are kept in them), half are local (they carry a name or an
    attribute over a few tokens).
    """
    hidden, states = config.hidden_size, config.n_groups * config.state_size
    projection, taps = mixer.in_proj.weight, mixer.conv1d.weight  # (rows, d), (c, 1, w)
    inner = mixer.out_proj.weight.shape[1]
    _normal(projection, 0.7 * hidden**-0.5, generator)
    _normal(mixer.out_proj.weight, 0.7 * (inner * config.num_hidden_layers) ** -0.5, generator)
    b_rows = slice(2 * inner, 2 * inner + states)
    c_rows = slice(2 * inner + states, 2 * inner + 2 * states)
    projection[b_rows] = projection[c_rows]

    _normal(taps, 0.09, generator)
    b_taps = slice(inner, inner + states)
    taps[:, 0, -1] += 1.0  # the token itself ...
    taps[b_taps, 0, -1] -= 1.0
    taps[b_taps, 0, -2] += 1.0  # ... and for B the one before it
    if mixer.conv1d.bias is not None:
        mixer.conv1d.bias.zero_()

    mixer.A_log.copy_(_uniform(mixer.A_log.shape, 0.1, 1.0, generator).log())
    step = _uniform(mixer.dt_bias.shape, math.log(0.01), math.log(0.1), generator).exp()
    step[len(step) // 2 :] *= 10  # slow heads .01 to .1, then local heads .1 to 1
    mixer.dt_bias.copy_(_step_bias(step))
    mixer.D.fill_(1.0)


def make_model(args: argparse.Namespace, vocab_size: int) -> ReMambaForCausalLM:
    """The model with random weights."""
    import torch

    from remamba import ReMambaConfig, ReMambaForCausalLM

    torch.manual_seed(args.seed)
    config = ReMambaConfig(
        backbone_type=args.family,
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        state_size=args.state_size,
        head_dim=args.head_dim,
        num_heads=2 * args.hidden_size // args.head_dim,
        expand=2,
        n_groups=1,
        conv_kernel=4,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        compressor_init="tied",
        compression={
            "start": 0.0,
            "length": 1.0,
            "keep_ratio": 0.05,
            "placement": "replace",
            "adaption": "multiplicative",
        },
    )
    model = ReMambaForCausalLM(config)
    if args.recall_start:
        recall_start(model, torch.Generator().manual_seed(args.seed))
    return model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--books", nargs="+", metavar="F", help="books: .txt, .md, .jsonl; also as .gz or .xz")
    add("--output", required=True, metavar="DIR", help="where tokenizer and model go")
    add("--family", choices=STATES, default="mamba2", help="backbone (default: mamba2)")
    add("--size", choices=SIZES, default="10m", help="parameters, about (default: 10m)")
    add("--vocab-size", type=int, default=8192, help="tokens (default: 8192)")
    add("--hidden-size", type=int, metavar="N", help="width (default: the size's)")
    add("--layers", type=int, metavar="N", help="layers (default: the size's)")
    add(
        "--state-size",
        type=int,
        metavar="N",
        help="state of a channel (default: 32 for mamba, 64 for mamba2)",
    )
    add("--head-dim", type=int, default=64, help="channels a head of mamba2 (default: 64)")
    add(
        "--classes",
        type=Path,
        metavar="F",
        help="TREC's labelled questions, for words of the task few-shot",
    )
    add("--tokenizer", metavar="DIR", help="take the tokenizer of this base; train none")
    add("--seed", type=int, default=0, help="of the weights and of the text sample (default: 0)")
    add(
        "--sample-mb",
        type=float,
        default=10.0,
        help="megabytes of books that the tokenizer is trained on (default: 10)",
    )
    add(
        "--word-weight",
        type=int,
        default=2000,
        help="how often each word of the facts is shown to the tokenizer (default: 2000)",
    )
    add(
        "--books-alone",
        action="store_true",
        help="train the tokenizer on the books and nothing else: no name and no value is a token "
        "because facts have it",
    )
    add(
        "--recall-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin with weights from which recall is learnt fast (default: on)",
    )
    add("--tokenizer-only", action="store_true", help="make no model")
    add("--overwrite", action="store_true", help="replace what is in the output directory")
    return parser


def fill_in_size(args: argparse.Namespace) -> None:
    """Give the options that were left out the values of --size and --family."""
    size = SIZES[args.size]
    args.hidden_size = args.hidden_size or size.hidden_size
    args.layers = args.layers or size.layers
    args.state_size = args.state_size or STATES[args.family]


def run(args: argparse.Namespace) -> None:
    """Make and save what the command line asks for."""
    output = Path(args.output)
    if output.exists() and any(output.iterdir()) and not args.overwrite:
        raise InputError(f"--output {output}: is not empty; give another directory or --overwrite")
    if args.vocab_size < 512:
        raise InputError(f"--vocab-size {args.vocab_size}: give 512 or more")
    fill_in_size(args)
    if args.family == "mamba2" and 2 * args.hidden_size % args.head_dim:
        raise InputError(f"--head-dim {args.head_dim}: must divide {2 * args.hidden_size}")
    if (args.books is None) == (args.tokenizer is None):
        raise InputError("give --books to train a tokenizer, or --tokenizer to take one")
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
    else:
        books = prose.read_books(args.books)
        print(f"{len(books)} books; training the tokenizer", file=sys.stderr, flush=True)
        tokenizer = train_tokenizer(
            books,
            args.vocab_size,
            megabytes=args.sample_mb,
            word_weight=args.word_weight,
            seed=args.seed,
            classes=args.classes,
            books_alone=args.books_alone,
        )
    output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, output)
    report: dict[str, Any] = {"vocabulary": tokenizer.get_vocab_size()}
    for split in SPLITS:
        words = tokens_per_word(tokenizer, fact_words(split))
        report[f"tokens_per_{split}_word"] = round(words, 3)
    if not args.tokenizer_only:
        model = make_model(args, tokenizer.get_vocab_size())
        model.save_pretrained(output)
        report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"output": str(output), **report}))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except InputError as error:
        print(f"make_base.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
