"""Make the untrained base of a tiny ReMamba model: a tokenizer for books and facts, random weights.

The tokenizer is a byte-level BPE trained on books and on the sentences of planted facts. The words
that facts are made of (names, places, colours, numbers of two digits ...) are fed to it so often
that nearly each becomes one token: a small model then copies an answer in one step.

The weights are random, with a start from which recall is learnt within thousands of steps instead
of millions (--no-recall-start leaves it out). In every layer, B begins as a copy of C, one token
back, while C and x look at the token itself: what followed a token is written under that
token, and the same token asked again reads it. Half of the heads are slow (facts are kept in them),
half are local (they carry a name or an attribute over a few tokens); measured: with all heads slow,
accuracy after 500 steps was 88.5 % in place of 89.3 %, and next-token loss on the documents 2.245
in place of 2.079 (step 350).

Example:

    python examples/make_base.py --books train-*.jsonl.xz --output tiny-base
    remamba train --base tiny-base ...
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remamba.errors import InputError
from remamba.planted import facts, language, prose

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from remamba import ReMambaForCausalLM

END, PAD = "<|endoftext|>", "<|pad|>"  # ids 0 and 1

# A word takes the space before it; 's and the like stand apart; line breaks come in one piece.
WORDS = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+(?!\S)|[^\S\n]+"
)


def fact_words() -> list[str]:
    """Every word that a tokenizer should know whole: names and values, with the space before."""
    words = [*language.FIRST_NAMES, *language.SURNAMES]
    for attribute in language.ATTRIBUTES:
        values = attribute.values
        words += language.TWO_DIGITS if values is language.NUMBERS else values
    return [" " + word for word in dict.fromkeys(words)]


def training_text(
    books: list[list[str]], megabytes: float, word_weight: int, seed: int
) -> Iterator[str]:
    """A sample of the books, a fifth as much of facts and questions, and the words many times."""
    rng = random.Random(seed)
    paragraphs = [paragraph for book in books for paragraph in book]
    rng.shuffle(paragraphs)
    room = megabytes * 1e6
    for paragraph in paragraphs:
        yield paragraph + "\n\n"
        room -= len(paragraph)
        if room < 0:
            break
    maker = facts.FactMaker(books, facts.Options(seed=seed))
    room = megabytes * 1e6 / 5
    while room > 0:
        for fact in maker.facts(rng, 100):
            question = rng.choice(fact.attribute.questions).replace("{p}", fact.person)
            text = f" {fact.text}{language.QUESTION.replace('{q}', question)} {fact.value}"
            yield text
            room -= len(text)
    for word in fact_words():
        yield word * word_weight


def train_tokenizer(
    books: list[list[str]],
    vocab_size: int,
    *,
    megabytes: float = 10.0,
    word_weight: int = 2000,
    seed: int = 0,
) -> Tokenizer:
    """Train the byte-level BPE tokenizer."""
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
    tokenizer.train_from_iterator(training_text(books, megabytes, word_weight, seed), trainer)
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


def one_token_share(tokenizer: Any, words: Sequence[str]) -> float:
    """The share of the words that are one token."""
    return sum(len(tokenizer.encode(word).ids) == 1 for word in words) / len(words)


def recall_start(model: ReMambaForCausalLM, generator: torch.Generator) -> None:
    """Draw the weights of a Mamba-2 model so that recall is near (see the top of this file).

    in_proj's rows are [gate (e), x (e), B (g n), C (g n), dt (h)]; conv1d's channels are [x, B, C].
    """
    import torch

    config = model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    states = config.n_groups * config.state_size

    def normal(weight: torch.Tensor, std: float) -> None:
        weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))

    def uniform(weight: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty(weight.shape).uniform_(low, high, generator=generator)

    with torch.no_grad():
        normal(model.backbone.embeddings.weight, 0.05)
        for layer in model.backbone.layers:
            mixer = layer.mixer
            projection, taps = mixer.in_proj.weight, mixer.conv1d.weight  # (rows, d), (c, 1, w)
            inner = mixer.out_proj.weight.shape[1]
            normal(projection, 0.7 * hidden**-0.5)
            normal(mixer.out_proj.weight, 0.7 * (inner * layers) ** -0.5)
            b_rows = slice(2 * inner, 2 * inner + states)
            c_rows = slice(2 * inner + states, 2 * inner + 2 * states)
            projection[b_rows] = projection[c_rows]

            normal(taps, 0.09)
            b_taps = slice(inner, inner + states)
            taps[:, 0, -1] += 1.0  # the token itself ...
            taps[b_taps, 0, -1] -= 1.0
            taps[b_taps, 0, -2] += 1.0  # ... and for B the one before it
            if mixer.conv1d.bias is not None:
                mixer.conv1d.bias.zero_()

            mixer.A_log.copy_(uniform(mixer.A_log, 0.1, 1.0).log())
            step = uniform(mixer.dt_bias, math.log(0.01), math.log(0.1)).exp()
            step[len(step) // 2 :] *= 10  # slow heads .01 to .1, then local heads .1 to 1
            mixer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step
            mixer.D.fill_(1.0)


def make_model(args: argparse.Namespace, vocab_size: int) -> ReMambaForCausalLM:
    """The model with random weights."""
    import torch

    from remamba import ReMambaConfig, ReMambaForCausalLM

    torch.manual_seed(args.seed)
    config = ReMambaConfig(
        backbone_type="mamba2",
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
    add("--books", nargs="+", required=True, metavar="F", help="books: .jsonl or .jsonl.xz")
    add("--output", required=True, metavar="DIR", help="where tokenizer and model go")
    add("--vocab-size", type=int, default=4096, help="tokens (default: 4096)")
    add("--hidden-size", type=int, default=256, help="width (default: 256)")
    add("--layers", type=int, default=6, help="layers (default: 6)")
    add("--state-size", type=int, default=64, help="state of a channel (default: 64)")
    add("--head-dim", type=int, default=64, help="channels a head (default: 64)")
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
        "--recall-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin with weights from which recall is learnt fast (default: on)",
    )
    add("--tokenizer-only", action="store_true", help="make no model")
    add("--overwrite", action="store_true", help="replace what is in the output directory")
    return parser


def run(args: argparse.Namespace) -> None:
    """Make and save what the command line asks for."""
    output = Path(args.output)
    if output.exists() and any(output.iterdir()) and not args.overwrite:
        raise InputError(f"--output {output}: is not empty; give another directory or --overwrite")
    if args.vocab_size < 512:
        raise InputError(f"--vocab-size {args.vocab_size}: give 512 or more")
    if 2 * args.hidden_size % args.head_dim:
        raise InputError(f"--head-dim {args.head_dim}: must divide {2 * args.hidden_size}")
    books = prose.read_books(args.books)
    print(f"{len(books)} books; training the tokenizer", file=sys.stderr, flush=True)
    tokenizer = train_tokenizer(
        books,
        args.vocab_size,
        megabytes=args.sample_mb,
        word_weight=args.word_weight,
        seed=args.seed,
    )
    output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, output)
    sample = "\n\n".join(books[0])[:200_000]
    report = {
        "vocabulary": tokenizer.get_vocab_size(),
        "one_token_words": round(one_token_share(tokenizer, fact_words()), 3),
        "prose_chars_per_token": round(len(sample) / len(tokenizer.encode(sample).ids), 2),
    }
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
