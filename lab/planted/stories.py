"""BABILong's first five tasks: the sentences of a bAbI story, in their order, hidden in our books.

Kuratov et al., "BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack",
arXiv 2406.10149; the stories are those of Weston et al., "Towards AI-Complete Question Answering",
arXiv 1502.05698, tasks 1 to 5: where somebody is; where a thing is; where it was before; which room
lies in some direction of another; who gave what to whom. They are drawn here from that paper's
small world (`grammar-qa1` ...), or read from the user's own files of bAbI (`babi-qa1` ...): two
sets of tasks, so that no report mixes them.

An answer is right where its first sentence names the expected label and no other one that the
question does not name, as BABILong scores it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.planted.needles import Needle, hide
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError
from remamba.json_lines import Lines

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
GIVERS = ("Mary", "Fred", "Bill", "Jeff")
ROOMS = ("hallway", "bathroom", "office", "bedroom", "kitchen", "garden")
THINGS = ("football", "apple", "milk")
MOVES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKES = ("got", "took", "grabbed", "picked up")
DROPS = ("dropped", "discarded", "left", "put down")
GIVES = ("gave", "handed", "passed")
DIRECTIONS = {"north": "south", "south": "north", "east": "west", "west": "east"}
LABELS = {**dict.fromkeys((1, 2, 3, 4), ROOMS), 5: (*GIVERS, *THINGS)}
"""Task -> what its answers can be."""
TRIES = 20
"""Stories that are drawn for a context, before it is too short for them."""
FILE_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


@dataclass(frozen=True)
class Told:
    """A question about a story's sentences: its answer, and the numbers of those that give it."""

    question: str
    answer: str
    support: tuple[int, ...]


Story = tuple[list[str], list[Told]]
"""Sentences, and what may be asked behind the last of them."""


class _World:
    """Who is where and holds what, sentence by sentence, with the sentence that said so."""

    def __init__(self, rng: random.Random, people: Sequence[str], things: Sequence[str]):
        self.rng, self.people, self.things = rng, people, things
        self.said: list[str] = []
        self.at: dict[str, tuple[str, int]] = {}
        self.holder: dict[str, tuple[str, int]] = {}
        self.lies: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.path: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        """Of each thing that was taken: the rooms that it has been in."""
        self.given: list[tuple[str, str, str, int]] = []
        """Giver, thing, receiver, sentence."""

    def _say(self, text: str) -> int:
        self.said.append(text)
        return len(self.said) - 1

    def move(self, person: str) -> None:
        room = self.rng.choice([r for r in ROOMS if r != self.at.get(person, ("", 0))[0]])
        number = self._say(f"{person} {self.rng.choice(MOVES)} the {room}.")
        self.at[person] = room, number
        for thing, (holder, taken) in self.holder.items():
            if holder == person:
                self._enter(thing, room, (taken, number))

    def _enter(self, thing: str, room: str, support: tuple[int, ...]) -> None:
        path = self.path.setdefault(thing, [])
        if not path or path[-1][0] != room:
            path.append((room, support))

    def take(self, person: str) -> bool:
        """Whether there was something to take: what lies in the room, or was nowhere yet."""
        room, came = self.at[person]
        free = [
            t for t in self.things
            if t not in self.holder and self.lies.get(t, (room, ()))[0] == room
        ]  # fmt: skip
        if not free:
            return False
        thing = self.rng.choice(free)
        number = self._say(f"{person} {self.rng.choice(TAKES)} the {thing} there.")
        self.holder[thing] = person, number
        self.lies.pop(thing, None)
        self._enter(thing, room, (number, came))
        return True

    def drop(self, person: str) -> bool:
        """Whether there was something to drop."""
        held = [thing for thing, (holder, _) in self.holder.items() if holder == person]
        if not held:
            return False
        thing = self.rng.choice(held)
        room, came = self.at[person]
        number = self._say(f"{person} {self.rng.choice(DROPS)} the {thing}.")
        del self.holder[thing]
        self.lies[thing] = room, (number, came)
        return True

    def give(self, person: str) -> bool:
        """Whether there was something to give, to somebody in the room."""
        held = [thing for thing, (holder, _) in self.holder.items() if holder == person]
        room = self.at[person][0]
        near = [p for p, (where, _) in self.at.items() if where == room and p != person]
        if not held or not near:
            return False
        thing, other = self.rng.choice(held), self.rng.choice(near)
        number = self._say(f"{person} {self.rng.choice(GIVES)} the {thing} to {other}.")
        self.holder[thing] = other, number
        self.given.append((person, thing, other, number))
        return True


def where_is_somebody(rng: random.Random) -> Story:
    """Task 1: two to ten moves; the last one of a person tells."""
    world = _World(rng, PEOPLE, ())
    for _ in range(rng.randint(2, 10)):
        world.move(rng.choice(PEOPLE))
    told = [Told(f"Where is {who}?", room, (at,)) for who, (room, at) in world.at.items()]
    return world.said, told


def _carry(rng: random.Random, steps: int) -> _World:
    """People who move, take and drop things."""
    world = _World(rng, PEOPLE, THINGS)
    while len(world.said) < steps:
        person = rng.choice(PEOPLE)
        act = rng.random()
        if person in world.at and act < 0.3:
            world.take(person)
        elif person in world.at and act < 0.45:
            world.drop(person)
        else:
            world.move(person)
    return world


def where_is_a_thing(rng: random.Random) -> Story:
    """Task 2: who has it, and where that person is; or who let it go, and where."""
    world = _carry(rng, rng.randint(6, 24))
    told = []
    for thing in THINGS:
        if thing in world.holder:
            person, taken = world.holder[thing]
            room, came = world.at[person]
            told.append(Told(f"Where is the {thing}?", room, tuple(sorted((taken, came)))))
        elif thing in world.lies:
            room, support = world.lies[thing]
            told.append(Told(f"Where is the {thing}?", room, tuple(sorted(support))))
    return world.said, told


def where_was_a_thing(rng: random.Random) -> Story:
    """Task 3: in which room it was before it came to another, the last time it came there."""
    world = _carry(rng, rng.randint(12, 40))
    told = []
    for thing, path in world.path.items():
        if len(path) > 1:
            (before, earlier), (room, later) = path[-2:]
            support = tuple(sorted({*earlier, *later}))
            told.append(Told(f"Where was the {thing} before the {room}?", before, support))
    return world.said, told


def which_room_lies_so(rng: random.Random) -> Story:
    """Task 4: two statements about three rooms; one of them tells."""
    one, middle, other = rng.sample(ROOMS, 3)
    way = rng.choice(list(DIRECTIONS))
    second = rng.choice([way, *(d for d in DIRECTIONS if d not in (way, DIRECTIONS[way]))])
    facts = [(one, way, middle), (middle, second, other)]
    rng.shuffle(facts)
    said = [f"The {a} is {d} of the {b}." for a, d, b in facts]
    told = []
    for number, (a, d, b) in enumerate(facts):
        told.append(Told(f"What is {d} of the {b}?", a, (number,)))
        told.append(Told(f"What is the {a} {d} of?", b, (number,)))
    return said, told


def who_gave_what(rng: random.Random) -> Story:
    """Task 5: people who also hand things over; the last gift of its kind tells."""
    world = _World(rng, GIVERS, THINGS)
    steps = rng.randint(6, 24)
    while len(world.said) < steps or not world.given:
        person = rng.choice(GIVERS)
        act = rng.random()
        if person in world.at and act < 0.3:
            world.take(person)
        elif person in world.at and act < 0.7 and world.give(person):
            continue
        else:
            world.move(person)
    questions: dict[str, Told] = {}
    for giver, thing, other, number in world.given:  # a later gift takes the earlier one's place
        for question, answer in (
            (f"What did {giver} give to {other}?", thing),
            (f"Who did {giver} give the {thing} to?", other),
            (f"Who gave the {thing} to {other}?", giver),
            (f"Who received the {thing}?", other),
            (f"Who gave the {thing}?", giver),
        ):
            questions[question] = Told(question, answer, (number,))
    return world.said, list(questions.values())


STORIES: dict[int, Callable[[random.Random], Story]] = {
    1: where_is_somebody,
    2: where_is_a_thing,
    3: where_was_a_thing,
    4: which_room_lies_so,
    5: who_gave_what,
}


@dataclass(frozen=True)
class StoryTask:
    """A story's sentences in the prose, and questions about how it stands at its end.

    Args:
        number: of the task, 1 to 5.
        files: a folder of bAbI's own files; None: the stories are drawn.

    Raises:
        InputError: the folder has none for this task.
    """

    number: int
    files: Path | None = None

    name = "story"
    metric = "label"
    template = ""
    new_tokens = 8

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with a story, and different questions about it, if it has so many.

        Raises:
            InputError: the context is too short for the story, or the books are.
        """
        for left in reversed(range(TRIES)):
            said, told = self._story(rng, source.split)
            sentences = [Needle("", "", text) for text in said]
            try:
                context, spans = hide(source, rng, tokens, sentences, in_order=True)
                break
            except InputError:  # a shorter story may fit
                if not left:
                    raise
        rng.shuffle(told)
        labels = LABELS[self.number]
        return Draft(
            context,
            tuple(
                Asked(
                    one.question,
                    f" {one.answer}",
                    tuple(spans[number] for number in one.support),
                    (one.answer,),
                    tuple(
                        label for label in labels
                        if label != one.answer and label.lower() not in one.question.lower()
                    ),
                )
                for one in told[:questions]
            ),
        )  # fmt: skip

    def _story(self, rng: random.Random, split: str) -> Story:
        if self.files is not None:
            said, told = rng.choice(read_stories(self.files, self.number, split))
            return list(said), list(told)
        while True:
            said, told = STORIES[self.number](rng)
            if told:
                return said, told


@cache
def read_stories(folder: Path, number: int, split: str) -> list[Story]:
    """The stories of a file of bAbI, one for each question, as far as it had been told.

    Raises:
        InputError: the folder has no such file, or a line is none of bAbI's.
    """
    end = FILE_SPLITS[split]
    found = sorted(folder.glob(f"qa{number}_*{end}.txt"))
    if len(found) != 1:
        raise InputError(
            f"--babi {folder}: {len(found) or 'no'} files are named qa{number}_*{end}.txt, and "
            f"task {number} of the split {split} needs one"
        )
    stories: list[Story] = []
    places: dict[int, int] = {}
    said: list[str] = []
    for at, line in Lines(found[0]):
        match = re.fullmatch(r"(\d+) ([^\t]+)(?:\t([^\t]+)\t([\d ]+))?", line.decode().strip())
        if match is None:
            raise InputError(
                f"{found[0]}:{at}: give 'NUMBER sentence' or 'NUMBER question TAB answer TAB "
                "numbers of the sentences that tell'"
            )
        mark, text, answer, support = match.groups()
        if int(mark) == 1:
            places, said = {}, []
        if answer is None:
            places[int(mark)] = len(said)
            said.append(text.strip())
            continue
        try:
            known = tuple(places[int(one)] for one in support.split())
        except KeyError as error:
            raise InputError(f"{found[0]}:{at}: there is no sentence {error} before it") from error
        stories.append((list(said), [Told(text.strip(), answer.strip(), known)]))
    if not stories:
        raise InputError(f"{found[0]}: there is no question in it")
    return stories
