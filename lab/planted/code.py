"""A source file of made-up functions that repeat each other, and the question for the next line.

The file looks like Python. Its names are made-up words ("merge_tavor"), so that nothing but the
file tells what follows. Some functions are copies of earlier ones under another name, some differ
from an earlier one in a few lines. A question begins one more copy; its next line stands in the one
place of the file where the lines before it are the same.
"""

from __future__ import annotations

import builtins
import keyword
import random
from dataclasses import dataclass

from lab.planted.made_up import made_up_word
from lab.planted.prose import PARAGRAPH, Lengths
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError

VERBS = (
    *("add", "build", "check", "clear", "close", "copy", "count", "draw", "find", "get", "join"),
    *("load", "make", "merge", "move", "open", "parse", "print", "read", "save", "send", "set"),
    *("show", "sort", "split", "start", "stop", "update", "wait", "write"),
)
LINES = {
    "train": (
        "{a} = {f}({b})",
        "{a} = {f}({b}, {c})",
        "{a} = {b}.{c}",
        "{a} = {b}[{c}]",
        "{a} = {b} + {c}",
        "{a}[{b}] = {c}",
        "{a}.append({b})",
        "{a} += {n}",
        "{f}({a}, {n})",
        "if {a} > {n}: {b} = {c}",
        "if {a} is None: return {b}",
        "for {a} in {b}: {c}.add({a})",
        "assert {a} != {b}",
        "del {a}[{b}]",
    ),
    "dev": (
        "{a} = {b} * {n}",
        "{a} = {b} or {c}",
        "{a}, {b} = {f}({c})",
        "{a}.extend({b})",
        "while {a} < {n}: {a} = {f}({b})",
        "yield {a}, {b}",
    ),
    "test": (
        "{a} -= {b}",
        "{a} = {f}(*{b})",
        "{a} = {b} if {c} else {n}",
        "{a}.insert({n}, {b})",
        "with {f}({a}) as {b}: {b}.close()",
        "raise {a}({b}, {n})",
    ),
}
"""Split -> what a line may be: a, b, c are variables, f a function, n a number."""
INDENT = "    "
WORDS = 24  # that a file's names are made of
TRIES = 5
RESERVED = frozenset((*keyword.kwlist, *dir(builtins)))


@dataclass(frozen=True)
class Function:
    """A function of the file; `lines` are its body without indentation."""

    name: str
    arguments: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """With the blank line before it, and without a line break at the end."""
        return self.head(len(self.lines)).rstrip("\n")

    def head(self, count: int) -> str:
        """The definition and the first `count` lines, with the blank line before."""
        body = "".join(f"{INDENT}{line}\n" for line in self.lines[:count])
        return f"{PARAGRAPH}def {self.name}({self.arguments}):\n{body}"


@dataclass(frozen=True)
class CodeTask:
    """The next line of a function that repeats an earlier one under another name.

    The question carries the beginning of the copy, 2 to 4 lines, as the file goes on right behind
    the context; the response is the line after it, with its indentation and without a line break.
    The evidence is that line in the earlier function.

    Args:
        repeated: share of the file's functions that are copies of earlier ones.
        similar: share of those that differ from an earlier one in one line or more.

    Raises:
        InputError: they are no shares, or more than all together.
    """

    repeated: float = 0.2
    similar: float = 0.3

    name = "code"
    metric = "exact"
    template = "lcc"
    new_tokens = 64

    def __post_init__(self) -> None:
        for name in ("repeated", "similar"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: give a share from 0 to 1")
        if self.repeated + self.similar > 1:
            raise InputError(
                f"repeated {self.repeated} and similar {self.similar}: give shares that are 1 "
                "together, or less"
            )

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A file, and questions each about another function of it.

        Raises:
            InputError: the context is too short for a function, or holds nothing but copies.
        """
        _, aim, _ = source.range_of(tokens, rng)
        for _ in range(TRIES):
            writer = _Writer(rng, source.split)
            functions, context = self._file(source.lengths, rng, writer, aim)
            asked = self._ask(rng, writer, functions, questions)
            if asked or (functions and not questions):
                return Draft(context, tuple(asked))
        raise InputError(
            f"--tokens {tokens[0]} {tokens[1]}: no function of code that stands there once; "
            "give more tokens, or fewer copies"
        )

    def _file(
        self, lengths: Lengths, rng: random.Random, writer: _Writer, room: int
    ) -> tuple[list[Function], str]:
        """Functions that fill the room, and the file that they make."""
        functions: list[Function] = []
        room += _cost(lengths, PARAGRAPH)  # no blank line stands before the first one
        missed = 0
        while missed < TRIES:
            function = self._next(rng, writer, functions)
            cost = _cost(lengths, function.text)
            if cost <= room:
                functions.append(function)
                room -= cost
            else:
                missed += 1  # a shorter one may fit
        pieces = [function.text for function in functions]
        while (cost := _cost(lengths, line := writer.constant())) <= room:
            pieces.append(line)  # the rest is filled with lines that stand in no function
            room -= cost
        return functions, "".join(pieces).removeprefix(PARAGRAPH)

    def _next(self, rng: random.Random, writer: _Writer, functions: list[Function]) -> Function:
        kind = rng.random() if functions else 1.0
        if kind >= self.repeated + self.similar:
            return writer.function()
        earlier = rng.choice(functions)
        lines = list(earlier.lines)
        if kind < self.similar:
            for place in rng.sample(range(len(lines)), rng.randint(1, len(lines) // 2)):
                lines[place] = writer.line()
        return Function(writer.name(), earlier.arguments, tuple(lines))

    def _ask(
        self, rng: random.Random, writer: _Writer, functions: list[Function], questions: int
    ) -> list[Asked]:
        places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for i, function in enumerate(functions):
            for start in range(len(function.lines)):
                for stop in range(start + 1, min(start + 4, len(function.lines))):
                    places.setdefault(function.lines[start:stop], []).append((i, stop))
        starts, length = [], -len(PARAGRAPH)
        for function in functions:
            starts.append(length)
            length += len(function.text)
        asked: list[Asked] = []
        for i in rng.sample(range(len(functions)), len(functions)):
            if len(asked) == questions:
                break
            function = functions[i]
            # 1 to 3 lines that no other place has: what follows them there is the answer
            counts = [n for n in (1, 2, 3) if places.get(function.lines[:n]) == [(i, n)]]
            if not counts:
                continue
            count = rng.choice(counts)
            copy = Function(writer.name(), function.arguments, function.lines)
            start = starts[i] + len(function.head(count)) + len(INDENT)
            answer = function.lines[count]
            asked.append(Asked(copy.head(count), INDENT + answer, ((start, start + len(answer)),)))
        return asked


class _Writer:
    """Writes names and lines from the made-up words of one file."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split = rng, split
        self.words: list[str] = []
        for _ in range(WORDS):
            self.words.append(made_up_word(rng, split, RESERVED.union(self.words)))
        self.names: set[str] = set()

    def name(self) -> str:
        """A function's name that no other function of the file has, as long as there are some."""
        for _ in range(1000):
            name = self._called()
            if name not in self.names:
                break
        self.names.add(name)
        return name

    def _called(self) -> str:
        return f"{self.rng.choice(VERBS)}_{self.rng.choice(self.words)}"

    def line(self) -> str:
        a, b, c = self.rng.sample(self.words, 3)
        return self.rng.choice(LINES[self.split]).format(
            a=a, b=b, c=c, f=self._called(), n=self.rng.randint(2, 99)
        )

    def constant(self) -> str:
        return f"\n{self.rng.choice(self.words).upper()} = {self.rng.randint(2, 99)}"

    def function(self) -> Function:
        a, b = self.rng.sample(self.words, 2)
        lines = [self.line() for _ in range(self.rng.randint(3, 6))]
        lines.append(f"return {self.rng.choice(self.words)}")
        return Function(self.name(), f"{a}, {b}", tuple(lines))


def _cost(lengths: Lengths, piece: str) -> int:
    """Length of a piece that begins with a line break: tokens may hold several spaces here."""
    if lengths.tokenizer is None:
        return len(piece)
    return len(lengths.tokenizer.encode(piece, add_special_tokens=False).ids)
