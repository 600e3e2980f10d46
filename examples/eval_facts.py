"""Measure how well a model answers questions about facts planted in books.

For every length, documents of the dev split (`remamba data build planted`) are read once each and
asked a few questions. The rows:

    ReMamba              the model with its own compression
    stage 1 alone        the same weights with compression off: plain Mamba over the whole document
    random, fixed        the same weights, but which places are kept is chance or evenly spread
    plain                --plain: a model trained without compression
    plain, 20 % dropped  the same, with the first fifth of each document cut away: what shortening
                         alone does (of the stage-1 weights where there is no --plain)

An answer counts when it is exactly the value. The interval is Wilson's at 95 %, over questions.
"evidence kept" is the share of questions for which a token of the asked fact was among the K kept,
"value kept" that for which a token of its value was (chance keeps many sentences, few values).
Times are of the machine at hand: reading a document once, then each question.

Example:

    python examples/eval_facts.py --model tiny --plain tiny-plain --books dev.jsonl.xz \\
        --tokens 1000 2000 4000 --questions 200 --output facts.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import remamba
from remamba import CompressionConfig, DocumentMemory, ReMambaForCausalLM
from remamba.errors import InputError
from remamba.planted import facts, prose

DROPPED = 0.2


@dataclass
class Tally:
    """What one way of answering did at one length."""

    right: int = 0
    asked: int = 0
    evidence_kept: int = 0
    value_kept: int = 0
    kept: int | None = None
    read_seconds: float = 0.0
    answer_seconds: float = 0.0
    documents: int = 0
    predictions: list[str] = field(default_factory=list)

    def row(self, name: str, tokens: int) -> dict[str, Any]:
        """The numbers as they are saved."""
        low, high = wilson(self.right, self.asked)
        compressed = self.kept is not None
        return {
            "name": name,
            "tokens": tokens,
            "questions": self.asked,
            "exact_match": self.right / self.asked,
            "interval": [low, high],
            "evidence_kept": self.evidence_kept / self.asked if compressed else None,
            "value_kept": self.value_kept / self.asked if compressed else None,
            "kept": self.kept,
            "ms_read": 1e3 * self.read_seconds / self.documents,
            "ms_question": 1e3 * self.answer_seconds / self.asked,
            "predictions": self.predictions,
        }


@dataclass
class Way:
    """One way of answering: a model, its settings, and how much of the document it sees."""

    name: str
    model: ReMambaForCausalLM
    compression: CompressionConfig | bool
    dropped: float = 0.0


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    share = right / asked
    centre = share + z * z / (2 * asked)
    half = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def tokens_at(offsets: Sequence[tuple[int, int]], spans: Iterable[Sequence[int]]) -> set[int]:
    """Positions of the tokens that overlap a span of characters."""
    return {
        i
        for start, stop in spans
        for i, (first, last) in enumerate(offsets)
        if first < stop and last > start
    }


def value_spans(document: str, question: dict[str, Any]) -> list[tuple[int, int]]:
    """Where the value stands in the evidence, in characters of the document."""
    start, stop = question["evidence"]
    value = re.compile(rf"\b{re.escape(question['response'].strip())}\b")
    return [match.span() for match in value.finditer(document, start, stop)]


def make_ways(
    model: ReMambaForCausalLM, plain: ReMambaForCausalLM | None, changes: dict[str, Any]
) -> list[Way]:
    """The rows of the table, in order; `changes` replace the model's compression settings."""
    settings = model.config.compression
    if isinstance(settings, dict):
        settings = CompressionConfig.from_dict(settings)
    settings = settings.replace(**changes)
    shortened = f"{DROPPED:.0%} dropped".replace("%", " %")
    ways = [
        Way("ReMamba", model, settings),
        Way("stage 1 alone", model, False),
        Way("random selection", model, settings.replace(selector="random")),
        Way("fixed selection", model, settings.replace(selector="fixed")),
    ]
    if plain is None:
        return [*ways, Way(f"stage 1 alone, {shortened}", model, False, DROPPED)]
    return [
        *ways,
        Way("plain", plain, False),
        Way(f"plain, {shortened}", plain, False, DROPPED),
    ]


@dataclass
class Evaluation:
    """Asks every way the same questions."""

    ways: list[Way]
    tokenizer: Any
    device: str
    max_new_tokens: int

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        return result, time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    @torch.inference_mode()
    def document(self, row: dict[str, Any], tallies: list[Tally], seed: int) -> None:
        """Read one document, ask its questions in one batch, and count in the tallies."""
        encoded = self.tokenizer(
            row["document"], return_offsets_mapping=True, add_special_tokens=False
        )
        document = torch.tensor([encoded["input_ids"]], device=self.device)
        questions = self.tokenizer(
            [question["question"] for question in row["questions"]],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=False,
        ).to(self.device)
        offsets, asked = encoded["offset_mapping"], row["questions"]
        evidence = [tokens_at(offsets, [question["evidence"]]) for question in asked]
        values = [tokens_at(offsets, value_spans(row["document"], q)) for q in asked]
        memories: dict[tuple[int, float, bool], tuple[DocumentMemory, float]] = {}
        for way, tally in zip(self.ways, tallies, strict=True):
            # one reading of the document serves all that need it, whatever the selection
            key = (id(way.model), way.dropped, way.compression is False)
            if key not in memories:
                memories[key] = self._timed(lambda way=way: self._read(way, document))
            memory, seconds = memories[key]
            torch.manual_seed(seed)
            answer = self._timed(lambda way=way, memory=memory: self._ask(way, memory, questions))
            tally.read_seconds += seconds
            self._count(tally, row, evidence, values, questions["input_ids"].shape[1], *answer)

    def _read(self, way: Way, document: Tensor) -> DocumentMemory:
        start = int(way.dropped * document.shape[1])
        return way.model.read(document[:, start:], compression=way.compression)

    def _ask(self, way: Way, memory: DocumentMemory, questions: Any) -> Any:
        return way.model.generate(
            questions["input_ids"],
            attention_mask=questions["attention_mask"],
            memory=memory,
            compression=way.compression,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            return_dict_in_generate=True,
        )

    def _count(
        self,
        tally: Tally,
        row: dict[str, Any],
        evidence: list[set[int]],
        values: list[set[int]],
        question_width: int,
        out: Any,
        seconds: float,
    ) -> None:
        tally.answer_seconds += seconds
        tally.documents += 1
        for i, question in enumerate(row["questions"]):
            new = out.sequences[i, question_width:].tolist()
            if self.tokenizer.eos_token_id in new:
                new = new[: new.index(self.tokenizer.eos_token_id)]
            prediction = self.tokenizer.decode(new, skip_special_tokens=True)
            tally.predictions.append(prediction)
            tally.asked += 1
            tally.right += prediction.strip() == question["response"].strip()
        if out.kept is not None:
            tally.kept = max(tally.kept or 0, int(out.kept.lengths.max()))
            for fact, value, rows in zip(evidence, values, out.kept.rows(), strict=True):
                kept = {position for position, _ in rows}
                tally.evidence_kept += bool(kept & fact)
                tally.value_kept += bool(kept & value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of all rows."""
    lines = [
        "| tokens | | exact match % (95 %) | evidence kept % | value kept % | K | ms to read "
        "| ms a question |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        kept = "" if row["kept"] is None else str(row["kept"])
        evidence, value = (
            "" if row[name] is None else f"{100 * row[name]:.1f}"
            for name in ("evidence_kept", "value_kept")
        )
        lines.append(
            f"| {row['tokens']} | {row['name']} | {100 * row['exact_match']:.1f} "
            f"({100 * low:.1f}-{100 * high:.1f}) | {evidence} | {value} | {kept} "
            f"| {row['ms_read']:.1f} | {row['ms_question']:.1f} |"
        )
    return "\n".join(lines)


def origin(args: argparse.Namespace) -> dict[str, Any]:
    """Everything needed to run it again."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "command": shlex.join(["python", *sys.argv]),
        "seed": args.seed,
        "commit": git("rev-parse", "HEAD"),
        "changed_files": bool(git("status", "--porcelain")),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "remamba": remamba.__version__,
        },
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "books": {
            Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
            for path in args.books
        },
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the trained model")
    add("--plain", metavar="DIR", help="a model trained as plain Mamba, to compare with")
    add("--books", nargs="+", required=True, metavar="F", help="books kept out of training")
    add("--tokens", type=int, nargs="+", default=[1000, 2000, 4000], help="document lengths")
    add("--questions", type=int, default=200, help="questions a length (default: 200)")
    add("--per-document", type=int, default=4, help="questions a document (default: 4)")
    add(
        "--facts-per-1000",
        type=float,
        default=20.0,
        help="of a document (default: 20)",
    )
    add("--echo", type=float, default=0.5, help="said twice (default: 0.5)")
    add("--split", choices=("dev", "train"), default="dev", help="whose people (default: dev)")
    add("--keep-ratio", type=float, help="in place of the model's own")
    add("--num-kept", type=int, help="K in place of a ratio")
    add("--max-new-tokens", type=int, default=6, help="of an answer (default: 6)")
    add("--seed", type=int, default=1, help="of the documents (default: 1)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--output", required=True, metavar="F.json", help="all numbers and predictions")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    return parser


def load(directory: str, option: str, args: argparse.Namespace) -> ReMambaForCausalLM:
    """A model in evaluation mode on the device."""
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"{option} {directory}: there is no config.json in this directory")
    model = ReMambaForCausalLM.from_pretrained(directory, dtype=getattr(torch, args.dtype))
    return model.to(args.device).eval()


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the file."""
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise InputError(f"--output {output}: exists already; give another name or --overwrite")
    if not 1 <= args.per_document <= args.questions:
        raise InputError(f"--per-document {args.per_document}: give 1 to {args.questions}")
    model = load(args.model, "--model", args)
    plain = load(args.plain, "--plain", args) if args.plain else None
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if args.plain:
        other = transformers.AutoTokenizer.from_pretrained(args.plain)
        if other.get_vocab() != tokenizer.get_vocab():
            raise InputError(f"--plain {args.plain}: its tokenizer is not that of {args.model}")
    changes = {"keep_ratio": args.keep_ratio, "num_kept": args.num_kept}
    changes = {name: value for name, value in changes.items() if value is not None}
    ways = make_ways(model, plain, changes)
    evaluation = Evaluation(ways, tokenizer, args.device, args.max_new_tokens)
    books = prose.read_books(args.books)
    counter = facts.load_tokenizer(args.model)
    results = []
    for tokens in args.tokens:
        options = facts.Options(
            tokens=(tokens, tokens),
            facts_per_1000=args.facts_per_1000,
            questions=args.per_document,
            seed=args.seed,
            split=args.split,
            echo=args.echo,
        )
        maker = facts.FactMaker(books, options, counter)
        evaluation.document(maker.make(0), [Tally() for _ in ways], args.seed)  # warm up
        tallies = [Tally() for _ in ways]
        number = 0
        while tallies[0].asked < args.questions:
            row = maker.make(number)
            row["questions"] = row["questions"][: args.questions - tallies[0].asked]
            evaluation.document(row, tallies, args.seed + number)
            number += 1
            if number % 10 == 0:
                say(f"{tokens} tokens: {tallies[0].asked} of {args.questions} questions")
        results += [tally.row(way.name, tokens) for way, tally in zip(ways, tallies, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    compression = ways[0].compression
    assert isinstance(compression, CompressionConfig)
    report = {**origin(args), "compression": compression.to_dict(), "results": results}
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except InputError as error:
        print(f"eval_facts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
