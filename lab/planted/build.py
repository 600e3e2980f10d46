"""Writing a planted file: rows made by many processes, written in order, and its manifest."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lab.planted.disjoint import check_apart
from lab.planted.prose import Lengths, Prose, read_books
from lab.planted.suite import Options, Suite, make_tasks
from lab.planted.task import Source
from remamba.errors import InputError
from remamba.files import check_output, make_directory, whole_file, write_whole
from remamba.provenance import commit, versions
from remamba.train.progress import duration, say
from remamba.train.records import file_hash

CHUNK = 32
"""Rows that a process makes at once."""


def load_tokenizer(directory: str | Path | None) -> Any:
    """The fast tokenizer (tokenizer.json) of a model directory; None for None.

    Raises:
        InputError: the directory has none.
    """
    if directory is None:
        return None
    path = _tokenizer_file(directory)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _tokenizer_file(directory: str | Path) -> Path:
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer {directory}: there is no tokenizer.json in this directory")
    return path


def open_suite(books: Sequence[str | Path], options: Options, tokenizer: Any = None) -> Suite:
    """The suite over books, whose rows are not written yet.

    Args:
        books: files as `read_books` takes them.
        tokenizer: a `tokenizers.Tokenizer`; None counts four characters as a token.

    Raises:
        InputError: an option or a book cannot be used.
    """
    tasks = make_tasks(options)
    lengths = Lengths(tokenizer)
    return Suite(Source(Prose(read_books(books), lengths), lengths, options.split), options, tasks)


class Chunk(NamedTuple):
    """Rows in a piece."""

    lines: str
    facts: list[tuple[str, int, int, list[tuple[str, ...]]]]
    """Of each row: task, tokens, drafts it took, answers of its questions."""


_SUITE: Suite | None = None


def _adopt(suite: Suite) -> None:
    global _SUITE
    _SUITE = suite


def _make_chunk(numbers: range) -> Chunk:
    assert _SUITE is not None
    lines, facts = [], []
    for number in numbers:
        row, drafts = _SUITE.make(number)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        answers = [tuple(question["answers"]) for question in row.get("questions", ())]
        facts.append((row["task"], row["tokens"], drafts, answers))
    return Chunk("".join(lines), facts)


def make_rows(suite: Suite, rows: int, workers: int = 1, chunk: int = CHUNK) -> Iterator[Chunk]:
    """Rows 0 up to `rows` in order; `workers` changes nothing but the speed."""
    chunks = [range(i, min(i + chunk, rows)) for i in range(0, rows, chunk)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        _adopt(suite)
        yield from map(_make_chunk, chunks)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with context.Pool(workers, initializer=_adopt, initargs=(suite,)) as pool:
        yield from pool.imap(_make_chunk, chunks)


@dataclass
class Tally:
    """What was made of one task."""

    tokens: list[int] = field(default_factory=list)
    drafts: int = 0
    answers: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Rows, questions, answers and the commonest one's share, lengths, drafts dropped."""
        tokens, asked = sorted(self.tokens), sum(self.answers.values())
        return {
            "rows": len(tokens),
            "questions": asked,
            "answers": len(self.answers),
            "commonest_answer": max(self.answers.values()) / asked if asked else None,
            "tokens": {
                "least": tokens[0],
                "median": tokens[len(tokens) // 2],
                "most": tokens[-1],
            },
            "dropped": 1 - len(tokens) / self.drafts,
        }


def manifest_of(output: Path) -> Path:
    """The manifest beside a file: facts.jsonl -> facts.manifest.json."""
    return output.with_suffix(".manifest.json")


def build_planted(
    books: Sequence[str | Path],
    output: str | Path,
    documents: int,
    options: Options,
    *,
    tokenizer: str | Path | None = None,
    workers: int = 1,
    apart_from: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a file of JSON lines and its manifest, each beside its place at first.

    Args:
        books: files as `read_books` takes them.
        documents: rows.
        tokenizer: directory with tokenizer.json, to count real tokens; None: 4 characters a token.
        workers: processes; the file does not depend on it.
        apart_from: what a model was trained on, for levels of the open test (`check_apart`).

    Returns:
        The manifest: rows, questions, both by task with lengths, options, versions, commit, and the
        SHA-256 of every file read and of the output.

    Raises:
        InputError: an option or a book cannot be used, or the output exists or cannot be written.
    """
    output = Path(output)
    if output.parent.is_dir():
        check_output(output, f"--output {output}")
    if output.exists() and not overwrite:
        raise InputError(f"--output {output}: exists already; give another name or --overwrite")
    for name, value in (("documents", documents), ("workers", workers)):
        if value < 1:
            raise InputError(f"--{name} {value}: give 1 or more")
    counter = load_tokenizer(tokenizer)
    if apart_from:
        say(f"looking for the open test's words and sentences in {len(apart_from)} files")
        check_apart(apart_from)
    say(f"reading {len(books)} files of books")
    suite = open_suite(books, options, counter)
    say(f"{len(suite.source.prose.books)} books")
    inputs = [*books, *apart_from, *([options.classes] if options.classes is not None else [])]
    inputs += [] if tokenizer is None else [_tokenizer_file(tokenizer)]
    hashes = {str(path): file_hash(Path(path)) for path in inputs}
    make_directory(output.parent)
    check_output(manifest_of(output))
    digest, tallies = hashlib.sha256(), {name: Tally() for name in options.tasks}
    progress = _Progress(documents)
    with whole_file(output, f"--output {output}") as part:
        with part.open("wb") as file:
            for lines, facts in make_rows(suite, documents, workers):
                data = lines.encode()
                file.write(data)
                digest.update(data)
                for name, tokens, drafts, answers in facts:
                    tally = tallies[name]
                    tally.tokens.append(tokens)
                    tally.drafts += drafts
                    tally.answers.update(answers)
                progress.add(len(facts))
        by_task = {name: tally.report() for name, tally in tallies.items() if tally.tokens}
        made = {
            "output": output.name,
            "sha256": digest.hexdigest(),
            "rows": documents,
            "questions": sum(report["questions"] for report in by_task.values()),
            "tasks": by_task,
            "options": json.loads(json.dumps(asdict(options), default=str)),
            "inputs": hashes,
            "versions": versions(),
            "commit": commit(),
        }
        manifest_of(output).unlink(missing_ok=True)  # it would tell of another file
    write_whole(manifest_of(output), json.dumps(made, indent=2) + "\n")
    return made


class _Progress:
    """A line on stderr every few seconds."""

    def __init__(self, rows: int):
        self.rows, self.done = rows, 0
        self.start = self.last = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last > 5:
            self.last = now
            rate = self.done / (now - self.start)
            left = duration((self.rows - self.done) / rate)
            say(f"{self.done:,} of {self.rows:,} documents, {rate:,.0f}/s, {left} left")
