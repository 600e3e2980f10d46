"""BABILong's tasks: an independent reader of the stories gives the same answers."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from lab.planted.stories import (
    DROPS,
    LABELS,
    MOVES,
    ROOMS,
    STORIES,
    TAKES,
    StoryTask,
    read_stories,
)
from lab.planted.suite import Options, make_tasks
from remamba.errors import InputError
from tests.lab.planted.library import check_budget, check_seeded, drafts, source

each_number = pytest.mark.parametrize("number", STORIES)


def rooms_of(said: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The rooms that each person, and each thing that was taken, has been in, one by one."""
    people: dict[str, list[str]] = {}
    things: dict[str, list[str]] = {}
    holder: dict[str, str] = {}
    for text in said:
        who = text.split(" ")[0]
        if match := re.fullmatch(rf"\w+ (?:{'|'.join(MOVES)}) the (\w+)\.", text):
            people.setdefault(who, []).append(match[1])
            for thing in (t for t, h in holder.items() if h == who):
                things[thing].append(match[1])
        elif match := re.fullmatch(rf"\w+ (?:{'|'.join(TAKES)}) the (\w+) there\.", text):
            assert match[1] not in holder
            holder[match[1]] = who
            path = things.setdefault(match[1], [])
            if path:
                assert path[-1] == people[who][-1]  # it lay where it was taken
            else:
                path.append(people[who][-1])
        elif match := re.fullmatch(rf"\w+ (?:{'|'.join(DROPS)}) the (\w+)\.", text):
            assert holder.pop(match[1]) == who
        else:
            match = re.fullmatch(r"\w+ (?:gave|handed|passed) the (\w+) to (\w+)\.", text)
            assert match is not None, text
            assert holder[match[1]] == who and people[who][-1] == people[match[2]][-1]
            holder[match[1]] = match[2]
    return people, things


def answer_of(number: int, said: list[str], question: str) -> str:
    """What a reader of the sentences answers."""
    asked = re.findall(r"\w+", question)
    if number == 4:
        facts = [re.findall(r"\w+", text) for text in said]  # The A is D of the B
        if asked[2] in ("north", "south", "east", "west"):
            (found,) = (f[1] for f in facts if (f[3], f[6]) == (asked[2], asked[5]))
        else:
            (found,) = (f[6] for f in facts if (f[1], f[3]) == (asked[3], asked[4]))
        return found
    people, things = rooms_of(said)
    if number == 1:
        return people[asked[2]][-1]
    if number == 2:
        return things[asked[3]][-1]
    if number == 3:
        path = things[asked[3]]
        last = len(path) - 1 - path[::-1].index(asked[6])
        return path[last - 1]
    gifts = [re.fullmatch(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", t) for t in said]
    given = [match.groups() for match in gifts if match]
    patterns = (
        (r"What did (\w+) give to (\w+)\?", (0, 2), 1),
        (r"Who did (\w+) give the (\w+) to\?", (0, 1), 2),
        (r"Who gave the (\w+) to (\w+)\?", (1, 2), 0),
        (r"Who received the (\w+)\?", (1,), 2),
        (r"Who gave the (\w+)\?", (1,), 0),
    )
    for pattern, places, wanted in patterns:
        if match := re.fullmatch(pattern, question):
            return [g for g in given if tuple(g[i] for i in places) == match.groups()][-1][wanted]
    raise AssertionError(question)


@each_number
def test_answers_are_what_a_reader_of_the_story_says(number: int) -> None:
    count = 0
    answers = set()
    for seed in range(300):
        said, told = STORIES[number](random.Random(seed))
        for one in told:
            assert one.answer == answer_of(number, said, one.question), (said, one)
            assert one.answer in LABELS[number]
            assert all(0 <= at < len(said) for at in one.support)
            assert any(one.answer in said[at] for at in one.support)
            answers.add(one.answer)
            count += 1
        assert len({one.question for one in told}) == len(told)
    assert count > 300 and answers == set(LABELS[number])


@each_number
def test_the_sentences_that_tell_are_enough(number: int) -> None:
    """The last sentences about the person or thing are among them: no later one changes it."""
    for seed in range(100):
        said, told = STORIES[number](random.Random(seed))
        for one in told:
            alone = [said[at] for at in one.support]
            if number in (1, 4):
                assert answer_of(number, alone, one.question) == one.answer
            elif number == 5:
                assert len(alone) == 1 and one.answer in alone[0]
            elif number == 2:
                assert 1 <= len(one.support) <= 2
            else:
                assert 2 <= len(one.support) <= 4


@each_number
def test_a_story_stands_in_the_prose_in_its_order(number: int) -> None:
    for draft in drafts(StoryTask(number), (1200, 1500)):
        assert draft.questions
        for asked in draft.questions:
            texts = [draft.context[slice(*span)] for span in asked.evidence]
            assert all(text.endswith(".") and text in draft.context for text in texts)
            starts = [start for start, _ in asked.evidence]
            assert starts == sorted(starts)
            assert asked.answers[0] not in asked.wrong
            assert not [label for label in asked.wrong if label.lower() in asked.text.lower()]


def test_contexts_keep_to_their_budget() -> None:
    check_budget(StoryTask(4))
    check_seeded(StoryTask(4))


FILE = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel? \thallway\t4
1 Sandra moved to the garden.
2 Where is Sandra? \tgarden\t1
"""


def test_stories_of_the_users_own_files(tmp_path: Path) -> None:
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text(FILE)
    stories = read_stories(tmp_path, 1, "test")
    assert [len(said) for said, _ in stories] == [2, 3, 1]
    assert [(t.question, t.answer, t.support) for _, (t,) in stories] == [
        ("Where is Mary?", "bathroom", (0,)),
        ("Where is Daniel?", "hallway", (2,)),
        ("Where is Sandra?", "garden", (0,)),
    ]
    options = Options(tasks=("babi-qa1",), split="test", babi=tmp_path)
    (task,) = make_tasks(options).values()
    draft = task.make(source("test"), random.Random(0), (300, 400), 3)
    (asked,) = draft.questions
    (span,) = asked.evidence
    assert draft.context[slice(*span)].endswith(f"the {asked.answers[0]}.")
    assert {*asked.wrong, *asked.answers} == set(ROOMS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"no files are named qa1_\*test\.txt"),
        ("Mary moved.\n", r"test\.txt:1: give 'NUMBER sentence'"),
        ("1 Mary moved.\n2 Where? \tgarden\t7\n", r"test\.txt:2: there is no sentence 7"),
        ("1 Mary moved.\n", "there is no question in it"),
    ],
)
def test_files_that_cannot_be_used(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "qa1_x_test.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        read_stories(tmp_path, 1, "test")
    with pytest.raises(InputError, match="needs --babi"):
        make_tasks(Options(tasks=("babi-qa2",)))
