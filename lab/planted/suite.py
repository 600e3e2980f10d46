"""The planted suite: its tasks by name, the prompts around their drafts, and the rows of a file.

A row, which `remamba train --data` and `remamba eval planted` read:

    {"id": "facts-train-0-17", "task": "facts", "metric": "exact", "new_tokens": 8, "tokens": 912,
     "document": "... The lantern of Ada Finch is crimson. ...",
     "questions": [
       {"question": "\\n\\nQuestion: What colour is the lantern of Ada Finch?\\nAnswer:",
        "response": " crimson",
        "evidence": [[812, 848]],
        "answers": ["crimson"]}]}

document + question + response reads as one text. `evidence` are characters of the document, one
span for each thing that must be found; `tokens` are the document's.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lab.planted.cloze import ProseTask
from lab.planted.code import CodeTask
from lab.planted.dictionary import DictionaryTask
from lab.planted.facts import FactsTask
from lab.planted.few_shot import FewShotTask, read_classes
from lab.planted.hops import TwoHopTask
from lab.planted.kinds import KindsTask
from lab.planted.many_facts import ManyFactsTask
from lab.planted.needles import NeedleTask, TrackingTask
from lab.planted.open_test import LEVELS, OpenTask
from lab.planted.paragraphs import CountTask, RetrievalTask
from lab.planted.stories import STORIES, StoryTask
from lab.planted.task import SPLITS, Asked, Draft, Source, Task
from remamba.errors import InputError
from remamba.evals.longbench import fill, templates

_QUESTION = "{context}\n\nQuestion: {input}\nAnswer:"
_MAGIC = (
    "{some} hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{number} afterwards.\n{{context}}\n{{input}}"
)
_NUMBER = _MAGIC.format(some="A special magic number is", number="number")
_NUMBERS = _MAGIC.format(some="Some special magic numbers are", number="numbers")
RULER: dict[str, Task] = {
    "ruler-single": NeedleTask(),
    "ruler-multi-key": NeedleTask(keys=4),
    "ruler-multi-value": NeedleTask(values=4),
    "ruler-multi-query": NeedleTask(keys=4, queries=4),
    "ruler-tracking": TrackingTask(),
}
SHORT_PROMPTS = {
    **dict.fromkeys(LEVELS, _QUESTION),
    "open-next": "{context}\n\nQuote: {input}\nThe paragraph after it:",
    "open-needle": _QUESTION,
    "facts": _QUESTION,
    "two-hop": _QUESTION,
    "many-facts": _QUESTION,
    "retrieval": "{context}\n\nQuote: {input}\nFrom:",
    "count": "{context}\n\nUnique paragraphs:",
    "few-shot": "{context}\n{input}",
    "dictionary": _QUESTION,
    "code": "{context}{input}",
    "kinds": _QUESTION,
    "prose": "{context}\n\nMissing word: {input}\nAnswer:",
    "ruler-single": _NUMBER,
    "ruler-multi-key": _NUMBER,
    "ruler-multi-value": _NUMBERS,
    "ruler-multi-query": _NUMBERS,
    "ruler-tracking": "Memorize and track the chain(s) of variable assignment hidden in the "
    "following text.\n\n{context}\n{input}",
    **{f"{kind}-qa{n}": _QUESTION for kind in ("grammar", "babi") for n in STORIES},
}
"""Task -> its prompt in few words, in the form of LongBench's templates."""
TASKS = tuple(SHORT_PROMPTS)
OPEN = (*LEVELS, "open-next", "open-needle")
"""The levels of the open test."""
CLOSED = ("facts", "two-hop", "many-facts", "retrieval", "count", "few-shot", "dictionary", "code")
"""Those whose names, words and kinds all splits share."""
PROMPTS = ("short", "longbench")
WITH_INPUT = {"lcc": "repobench-p"}
"""Template -> the same words with a place for {input}, where the question is code that goes on."""
ATTEMPTS = 10
"""Drafts of a row, each from other chance, before it is given up."""
OPEN_NEEDLES = 8
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Options:
    """What the rows look like.

    Args:
        tasks: names of TASKS, mixed by `weights`; None: evenly.
        tokens: length of a document with its instruction, drawn evenly from this range.
        questions: of a document at most.
        split: its entities, values and phrasings occur in no other.
        prompts: short | longbench.
        no_questions: plain text, the same documents without instruction and questions.
        facts_per_1000: facts in every 1,000 tokens, as far as they fit.
        echo: share of facts that the next sentence says once more.
        kinds: kinds of facts in a document of `facts`, drawn from this range; None: all.
        depth: the asked facts of `facts` stand at this share of the document; None: anywhere.
        open_values: share of the kinds of facts in a document whose values are any words.
        sentences: of each kind of facts of `facts`, the first so many; None: all.
        values: of each kind of facts of `facts` in a document, drawn from this range; None: all.
        first_paragraph: number of the first paragraph of `retrieval`, drawn from this range.
        classes: labelled questions, for `few-shot`.
        babi: folder of bAbI's own files, for `babi-qa1` to `babi-qa5`.

    Raises:
        InputError: an option is outside its range, or two of them contradict each other.
    """

    tasks: tuple[str, ...] = ("facts",)
    weights: tuple[float, ...] | None = None
    tokens: tuple[int, int] = (500, 1000)
    questions: int = 8
    seed: int = 0
    split: str = "train"
    prompts: str = "short"
    no_questions: bool = False
    facts_per_1000: float = 20.0
    echo: float = 0.5
    kinds: tuple[int, int] | None = None
    depth: float | None = None
    open_values: float = 0.0
    sentences: int | None = None
    values: tuple[int, int] | None = None
    first_paragraph: tuple[int, int] = (1, 1)
    classes: Path | None = None
    babi: Path | None = None

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise InputError(f"--tasks {name}: give some of {', '.join(TASKS)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"--tasks {' '.join(self.tasks)}: name one task or more, each once")
        if self.weights is not None:
            given = " ".join(map(str, self.weights))
            if len(self.weights) != len(self.tasks):
                raise InputError(f"--weights {given}: give one for each of {len(self.tasks)} tasks")
            if not all(0 < weight < math.inf for weight in self.weights):
                raise InputError(f"--weights {given}: give numbers above 0")
        low, high = self.tokens
        if not 50 <= low <= high:
            raise InputError(f"--tokens {low} {high}: give two numbers, 50 <= LO <= HI")
        if self.questions < 1:
            raise InputError(f"--questions {self.questions}: give 1 or more, or --no-questions")
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}: give one of {', '.join(SPLITS)}")
        if self.open_values and self.split != "train":
            raise InputError(
                f"--open-values {self.open_values} goes with --split train alone: "
                f"in {self.split} no value may be one that training can have seen"
            )
        if self.prompts not in PROMPTS:
            raise InputError(f"--prompts {self.prompts}: give one of {', '.join(PROMPTS)}")


def make_tasks(options: Options) -> dict[str, Task]:
    """The tasks that are named, each with the options that concern it.

    Raises:
        InputError: an option is outside a task's range, or one that a task needs is missing.
    """
    shares = {name: getattr(options, name) for name in ("facts_per_1000", "echo", "open_values")}
    makers: dict[str, Callable[[], Task]] = {
        "facts": lambda: FactsTask(
            **shares,
            kinds=options.kinds,
            depth=options.depth,
            sentences=options.sentences,
            values=options.values,
        ),
        "two-hop": lambda: TwoHopTask(**shares),
        "many-facts": lambda: ManyFactsTask(**shares),
        "retrieval": lambda: RetrievalTask(first=options.first_paragraph),
        "count": CountTask,
        "few-shot": lambda: _few_shot(options),
        "dictionary": DictionaryTask,
        "code": CodeTask,
        "kinds": lambda: KindsTask(**shares, kinds=options.kinds, depth=options.depth),
        "prose": ProseTask,
        "open-next": lambda: RetrievalTask(asks_next=True),
        "open-needle": lambda: NeedleTask(keys=OPEN_NEEDLES, exact=True),
        **{name: partial(RULER.__getitem__, name) for name in RULER},
        **{f"grammar-qa{n}": partial(StoryTask, n) for n in STORIES},
        **{f"babi-qa{n}": partial(_real_stories, n, options.babi) for n in STORIES},
    }
    for level in LEVELS:
        makers[level] = partial(
            OpenTask, **shares, kinds=options.kinds, depth=options.depth, level=level
        )
    return {name: makers[name]() for name in options.tasks}


def _real_stories(number: int, folder: Path | None) -> Task:
    if folder is None:
        raise InputError(
            f"--tasks babi-qa{number} needs --babi, a folder of bAbI's files; grammar-qa{number} "
            "draws stories of the same kind"
        )
    return StoryTask(number, folder)


def _few_shot(options: Options) -> Task:
    if options.classes is None:
        raise InputError("--tasks few-shot needs --classes, a file of TREC's labelled questions")
    return FewShotTask(read_classes(options.classes))


class Made(NamedTuple):
    """A row, and how many drafts it took."""

    row: dict[str, Any]
    drafts: int


class Suite:
    """Makes row i of an endless, seeded file: the same i gives the same row always.

    Args:
        source: books of the split, and how to count tokens.
        options: what the rows look like.
        tasks: by name, as `make_tasks` gives them.
    """

    def __init__(self, source: Source, options: Options, tasks: Mapping[str, Task]):
        self.source, self.options, self.tasks = source, options, tasks
        without = [name for name, task in tasks.items() if not task.template]
        if options.prompts == "longbench" and without:
            raise InputError(f"--prompts longbench: LongBench has none for {without[0]}")
        self._names = list(tasks)
        self._bounds = list(itertools.accumulate(options.weights or [1.0] * len(tasks)))
        self._chance = f"{options.seed}/{options.split}"
        self._start = random.Random(f"{self._chance}/order").random()

    def task_of(self, number: int) -> str:
        """The task of a row. Any run of rows has all tasks by their weights, to within a few."""
        place = (self._start + number * _GOLDEN) % 1 * self._bounds[-1]
        return self._names[min(bisect.bisect_right(self._bounds, place), len(self._names) - 1)]

    def template(self, name: str) -> str:
        """The prompt of a task, with places for {context} and {input}."""
        if self.options.prompts == "longbench":
            template = self.tasks[name].template
            return templates()[WITH_INPUT.get(template, template)]
        return SHORT_PROMPTS[name]

    def make(self, number: int) -> Made:
        """Row `number`.

        Raises:
            InputError: its task cannot be made from these books in documents of this length.
        """
        name = self.task_of(number)
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"{self._chance}/{number}/{name}/{attempt}")
            try:
                draft = self._draft(name, rng)
            except InputError as error:
                reason = error
                continue
            return Made(self._row(name, number, draft), attempt + 1)
        raise InputError(f"{reason} (the task is {name})")

    def _draft(self, name: str, rng: random.Random) -> Draft:
        options, (low, high) = self.options, self.options.tokens
        if options.no_questions:
            asked = options.questions if options.facts_per_1000 else 0
            return self.tasks[name].make(self.source, rng, (low, high), asked)
        before = fill(self.template(name), "", "").before
        used = self.tokens(before) if before else 0
        if high - used < 20:
            raise InputError(
                f"--tokens {low} {high}: the instruction of {name} has {used}; give more tokens"
            )
        room = max(low - used, 20), high - used
        draft = self.tasks[name].make(self.source, rng, room, options.questions)
        if not draft.questions:
            raise InputError(f"--tokens {low} {high}: too short for a question of {name}")
        return draft

    def _row(self, name: str, number: int, draft: Draft) -> dict[str, Any]:
        options, task = self.options, self.tasks[name]
        row = {"id": f"{name}-{options.split}-{options.seed}-{number}", "task": name}
        if options.no_questions:
            return {**row, "tokens": self.tokens(draft.context), "text": draft.context}
        template = self.template(name)
        document = fill(template, draft.context, "").before + draft.context
        return {
            **row,
            "metric": task.metric,
            "new_tokens": task.new_tokens,
            "tokens": self.tokens(document),
            "document": document,
            "questions": [_question(template, asked) for asked in draft.questions],
        }

    def tokens(self, text: str) -> int:
        """Tokens of a text; without a tokenizer, a quarter of its characters."""
        lengths = self.source.lengths
        if lengths.tokenizer is None:
            return -(-len(text) // lengths.unit)
        return len(lengths.tokenizer.encode(text, add_special_tokens=False).ids)


def _question(template: str, asked: Asked) -> dict[str, Any]:
    prompt = fill(template, "", asked.text)
    return {
        # a space at the end belongs to the response, as it does in every tokenizer
        "question": prompt.after.rstrip(" "),
        "response": asked.response,
        "evidence": [[start + len(prompt.before), stop + len(prompt.before)]
                     for start, stop in asked.evidence],
        "answers": list(asked.answers) or [asked.response.strip()],
        **({"wrong": list(asked.wrong)} if asked.wrong else {}),
    }  # fmt: skip
