"""Questions with their classes as examples, and one more question whose class is asked for.

The examples are TREC's: "LOC:city What is the capital of Yugoslavia ?". They belong to one split
each by a hash of the question, so that what is asked in one split is no example in another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lab.planted.task import SPLITS, Asked, Draft, Source, Span
from lab.planted.words import split_of
from remamba.errors import InputError
from remamba.json_lines import Lines

MOST_EVIDENCE = 8
TRIES = 50  # examples that no longer fit before no other one is tried
COARSE = {
    "ABBR": "Abbreviation",
    "DESC": "Description",
    "ENTY": "Entity",
    "HUM": "Human",
    "LOC": "Location",
    "NUM": "Number",
}
"""TREC's coarse class -> how prompts write it."""
FINE = {
    "ABBR:abb": "Abbreviation",
    "ABBR:exp": "Expression abbreviated",
    "DESC:def": "Definition of something",
    "DESC:desc": "Description of something",
    "DESC:manner": "Manner of an action",
    "DESC:reason": "Reason",
    "ENTY:animal": "Animal",
    "ENTY:body": "Organ of body",
    "ENTY:color": "Color",
    "ENTY:cremat": "Invention, book and other creative piece",
    "ENTY:currency": "Currency name",
    "ENTY:dismed": "Disease and medicine",
    "ENTY:event": "Event",
    "ENTY:food": "Food",
    "ENTY:instru": "Musical instrument",
    "ENTY:lang": "Language",
    "ENTY:letter": "Letter like a-z",
    "ENTY:other": "Other entity",
    "ENTY:plant": "Plant",
    "ENTY:product": "Product",
    "ENTY:religion": "Religion",
    "ENTY:sport": "Sport",
    "ENTY:substance": "Element and substance",
    "ENTY:symbol": "Symbols and sign",
    "ENTY:techmeth": "Techniques and method",
    "ENTY:termeq": "Equivalent term",
    "ENTY:veh": "Vehicle",
    "ENTY:word": "Word with a special property",
    "HUM:desc": "Description of a person",
    "HUM:gr": "Group or organization of person",
    "HUM:ind": "Individual",
    "HUM:title": "Title of a person",
    "LOC:city": "City",
    "LOC:country": "Country",
    "LOC:mount": "Mountain",
    "LOC:other": "Other location",
    "LOC:state": "State",
    "NUM:code": "Postcode or other code",
    "NUM:count": "Number of something",
    "NUM:date": "Date",
    "NUM:dist": "Distance, linear measure",
    "NUM:money": "Price",
    "NUM:ord": "Order, rank",
    "NUM:other": "Other number",
    "NUM:perc": "Percent, fraction",
    "NUM:period": "Lasting time of something",
    "NUM:speed": "Speed",
    "NUM:temp": "Temperature",
    "NUM:volsize": "Size, area and volume",
    "NUM:weight": "Weight",
}
"""TREC's fine class -> how prompts write it."""


@dataclass(frozen=True)
class Example:
    """A question and its classes as TREC spells them, "LOC" and "LOC:city"."""

    question: str
    coarse: str
    fine: str


def read_classes(path: str | Path) -> tuple[Example, ...]:
    """The questions of a file in TREC's form, "COARSE:fine question" on a line, in latin-1.

    .gz and .xz are unpacked. A question that stands there twice counts once, and not at all where
    its classes differ.

    Raises:
        InputError: there is no such file, or a line is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--classes {path}: there is no such file")
    found: dict[str, Example | None] = {}
    for number, line in Lines(path):
        text = " ".join(line.decode("latin-1").split())
        if not text:
            continue
        fine, _, question = text.partition(" ")
        if fine not in FINE or not question:
            raise InputError(
                f"--classes {path}:{number}: {text[:40]!r} is no 'COARSE:fine question' with a "
                "class of TREC"
            )
        example = Example(question, fine.split(":")[0], fine)
        if question in found and found[question] != example:
            found[question] = None
        else:
            found.setdefault(question, example)
    if examples := tuple(example for example in found.values() if example is not None):
        return examples
    raise InputError(f"--classes {path}: there is no question in this file")


@dataclass(frozen=True)
class FewShotTask:
    """Examples with their classes, as many as fit, and the class of one more question.

    The evidence is the label of each example of the same class, or of the 8 whose questions share
    most words with the asked one.

    Args:
        examples: as `read_classes` gives them.
        fine: the 50 fine classes in place of the six coarse ones.
    """

    examples: tuple[Example, ...]
    fine: bool = False

    name = "few-shot"
    metric = "exact"
    template = "trec"
    new_tokens = 16

    @cached_property
    def _by_split(self) -> dict[str, list[Example]]:
        parts: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for example in self.examples:
            parts[split_of(example.question)].append(example)
        return parts

    def label(self, example: Example) -> str:
        """The class as the prompt writes it."""
        return FINE[example.fine] if self.fine else COARSE[example.coarse]

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """Examples of all classes that the split has, if they fit, and questions that are none.

        Every asked class has an example.

        Raises:
            InputError: the context is too short for an example of each coarse class, or the split
                has too few examples.
        """
        low, aim, _ = source.range_of(tokens, rng)
        pool = list(self._by_split[source.split])
        rng.shuffle(pool)
        asked, rest = pool[:questions], pool[questions:]
        wanted = set(map(self.label, asked))
        firsts: dict[str, Example] = {}
        for example in rest:
            firsts.setdefault(self.label(example), example)
        # an example of every class comes before more of the same, of the asked ones above all
        order = dict.fromkeys(sorted(firsts.values(), key=lambda e: self.label(e) not in wanted))
        order.update(dict.fromkeys(rest))
        chosen: list[Example] = []
        room = aim + source.lengths.cost("\n")  # none before the first one
        missed = 0
        for example in order:
            cost = source.lengths.cost(self._shown(example))
            if cost <= room:
                chosen.append(example)
                room -= cost
            elif (missed := missed + 1) == TRIES:
                break
        shown = set(map(self.label, chosen))
        if not self.fine and len(shown) < len(firsts):
            raise InputError(
                f"--tokens {tokens[0]} {tokens[1]}: an example of each class is longer; "
                "give more tokens"
            )
        if len(chosen) == len(order) and aim - room < low:
            raise InputError(
                f"--tokens {tokens[0]} {tokens[1]}: the split {source.split} has only {len(pool)} "
                "examples; give more of them or fewer tokens"
            )
        rng.shuffle(chosen)
        context = "".join(map(self._shown, chosen)).removeprefix("\n")
        labels: list[Span] = []
        stop = -len("\n")
        for example in chosen:
            stop += len(self._shown(example))
            labels.append((stop - len(self.label(example)), stop))
        return Draft(
            context,
            tuple(
                Asked(
                    f"Question: {example.question}\nType:",
                    f" {self.label(example)}",
                    self._evidence(example, chosen, labels),
                )
                for example in asked
                if self.label(example) in shown
            ),
        )

    def _shown(self, example: Example) -> str:
        return f"\nQuestion: {example.question}\nType: {self.label(example)}"

    def _evidence(
        self, asked: Example, chosen: Sequence[Example], labels: Sequence[Span]
    ) -> tuple[Span, ...]:
        words = set(asked.question.lower().split())
        same = [i for i, example in enumerate(chosen) if self.label(example) == self.label(asked)]
        same.sort(key=lambda i: len(words & set(chosen[i].question.lower().split())), reverse=True)
        return tuple(labels[i] for i in sorted(same[:MOST_EVIDENCE]))
