"""Needles: RULER's retrieval and variable tracking by their public definitions, in our books.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv
2404.06654: sentences "One of the special magic numbers for KEY is: VALUE." between those of other
texts, seven digits for a value; or a chain of assignments "VAR B = VAR A". Keys are pairs of words.
The haystack of the paper's own data (essays, for tracking a repeated line) is the books' prose here
and the keys are ours, so the scores are not those of its data. An answer earns the share of the
expected words that it has (the paper's recall-based accuracy).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from lab.planted.planting import SHARE, fitting, plant
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError

_ADJECTIVES = """
ample ancient bitter brave brisk calm careful clever common curious distant dreary eager earnest
empty faint fierce gentle gloomy graceful grand hasty hollow humble idle jolly keen lazy lively
lofty lonely lucid merry modest narrow noble odd patient placid plain proud quaint quiet rapid rare
ripe rough royal rugged sacred silent simple sleepy slender solemn stern sturdy subtle sudden tender
tidy tranquil upright vague vivid warm weary wild wise worthy
"""
_NOUNS = """
alley arch attic badge balcony barn bay beam bell brook canal cellar chapel chart cliff clock cloud
coast column corridor cottage court creek crowd dawn desk ditch dome dune farm ferry field fog
forge gallery gate glade grove gulf hall hamlet harbor heath hill hut inlet jetty lake lamp lane
lawn ledge library lodge manor market marsh mill moat moor museum orchard parlor pasture path
pier plain pond porch port quay ridge river road shore spire stable storm stream tavern temple
tower valley village wharf wood yard
"""
ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HOPS = 4
"""Assignments of one variable to another, behind that of the value."""


@dataclass(frozen=True)
class Needle:
    """A sentence to plant: what is asked for it, and what it says."""

    key: str
    value: str
    text: str


@dataclass(frozen=True)
class NeedleTask:
    """Numbers for keys, hidden in the prose.

    Args:
        keys: that have numbers.
        values: that a key has.
        queries: keys that one question asks for.
        exact: ask in one short question for one number, scored by exact match: the level of the
            open test; else in RULER's words.
    """

    keys: int = 1
    values: int = 1
    queries: int = 1
    exact: bool = False

    name = "needle"
    template = ""

    @property
    def metric(self) -> str:
        return "exact" if self.exact else "recall"

    @property
    def new_tokens(self) -> int:
        return 12 if self.exact else 128

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with all needles, and questions, each about other keys, if there are so many.

        Raises:
            InputError: the context is too short for the needles, or the books are.
        """
        keys = draw_keys(rng, self.keys)
        numbers = rng.sample(range(10**6, 10**7), self.keys * self.values)
        needles = [
            Needle(key, str(numbers[i * self.values + j]), "")
            for i, key in enumerate(keys)
            for j in range(self.values)
        ]
        needles = [
            Needle(n.key, n.value, f"One of the special magic numbers for {n.key} is: {n.value}.")
            for n in needles
        ]
        rng.shuffle(needles)
        context, spans = hide(source, rng, tokens, needles)
        asked = []
        for first in range(0, self.keys - self.queries + 1, self.queries):
            some = keys[first : first + self.queries]
            found = [i for i, needle in enumerate(needles) if needle.key in some]
            found.sort(key=spans.__getitem__)
            values = tuple(needles[i].value for i in found)
            evidence = tuple(spans[i] for i in found)
            asked.append(Asked(self._question(some), " " + ", ".join(values), evidence, values))
        return Draft(context, tuple(asked[:questions]))

    def _question(self, keys: list[str]) -> str:
        wanted = " and ".join((", ".join(keys[:-1]), keys[-1])) if len(keys) > 1 else keys[0]
        if self.exact:
            return f"What is the special magic number for {wanted}?"
        are, s = ("is", "") if self.values * self.queries == 1 else ("are", "s")
        every = "" if are == "is" else "all "
        about = f"the special magic number{s} for {wanted} mentioned in the provided text"
        return f"What {are} {every}{about}? {about[0].upper()}{about[1:]} {are}"


@dataclass(frozen=True)
class TrackingTask:
    """A chain of assignments in the order of the text; all variables that hold the first's value.

    The evidence is every assignment.
    """

    name = "tracking"
    metric = "recall"
    template = ""
    new_tokens = 30

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with one chain, and the one question about it.

        Raises:
            InputError: the context is too short for the chain, or the books are.
        """
        names: list[str] = []
        while len(names) <= HOPS:
            name = "".join(rng.choices(LETTERS, k=5))
            if name not in names:
                names.append(name)
        value = str(rng.randint(10**4, 10**5 - 1))
        chain = [Needle(names[0], value, f"VAR {names[0]} = {value}.")]
        for before, name in itertools.pairwise(names):
            chain.append(Needle(name, before, f"VAR {name} = VAR {before}."))
        context, spans = hide(source, rng, tokens, chain, in_order=True)
        question = (
            f"Question: Find all variables that are assigned the value {value} in the text above. "
            "Answer: According to the chain of variable assignment in the text above, "
            f"{len(names)} variables are assigned the value {value}, they are:"
        )
        asked = Asked(question, " " + ", ".join(names), tuple(spans), tuple(names))
        return Draft(context, (asked,)[:questions])


def draw_keys(rng: random.Random, count: int) -> list[str]:
    """Different keys, of which no two share a word."""
    firsts, seconds = rng.sample(ADJECTIVES, count), rng.sample(NOUNS, count)
    return [f"{first}-{second}" for first, second in zip(firsts, seconds, strict=True)]


def hide(
    source: Source,
    rng: random.Random,
    tokens: tuple[int, int],
    needles: list[Needle],
    *,
    in_order: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """A context with all of the needles, and where each stands.

    Args:
        in_order: they stand in their order, else anywhere.

    Raises:
        InputError: they do not fit, or the books are too short.
    """
    room = source.range_of(tokens, rng)
    if len(fitting(source.lengths, SHARE * room[1], needles)) < len(needles):
        raise InputError(f"--tokens {tokens[0]} {tokens[1]}: too short for the task's sentences")
    depths = sorted(rng.random() for _ in needles) if in_order else []
    context, _, spans = plant(source, rng, room, needles, depths, joined=True)
    return context, spans
