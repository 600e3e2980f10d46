"""Repeated code: the next line stands in one place, each name in one split."""

from __future__ import annotations

import ast
import random
import re
from itertools import combinations

import pytest

from lab.planted.code import LINES, VERBS, CodeTask
from lab.planted.task import SPLITS
from lab.planted.words import split_of
from remamba.errors import InputError
from tests.lab.planted.library import (
    check_budget,
    check_seeded,
    check_without_questions,
    drafts,
    source,
)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", [CodeTask(), CodeTask(repeated=0.5, similar=0.5)])
def test_what_follows_the_same_lines_is_the_answer(task: CodeTask, split: str) -> None:
    """The lines of the question, without the definition, stand in one place of the file."""
    asked_depths = set()
    for draft in drafts(task, (600, 1200), split=split):
        assert draft.questions
        lines = draft.context.split("\n")
        for asked in draft.questions:
            blank, empty, definition, *head, end = asked.text.split("\n")
            assert (blank, empty, end) == ("", "", "") and definition.startswith("def ")
            assert definition not in lines
            places = [i for i in range(len(lines)) if lines[i : i + len(head)] == head]
            assert len(places) == 1
            at = places[0] + len(head)
            assert asked.response == lines[at] and "\n" not in asked.response
            before = "\n".join(lines[:at]) + "\n    "
            (span,) = asked.evidence
            assert span == (len(before), len(before) + len(lines[at].strip()))
            asked_depths.add(len(head))
            arguments = definition[definition.index("(") :]
            assert draft.context[: span[0]].rindex(arguments) > draft.context[: span[0]].rindex(
                "def "
            )
    assert asked_depths == {1, 2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_the_file_is_python_and_so_is_every_copy(split: str) -> None:
    for draft in drafts(CodeTask(), split=split):
        ast.parse(draft.context)
        for asked in draft.questions:
            ast.parse(draft.context + asked.text + asked.response)
        names = re.findall(r"^def (\w+)", draft.context, re.MULTILINE)
        names += [asked.text.split("(")[0].split()[-1] for asked in draft.questions]
        assert len(names) == len(set(names))


def test_functions_are_copied_as_often_as_told() -> None:
    def bodies(task: CodeTask) -> list[tuple[str, ...]]:
        """Of one long file."""
        (draft,) = drafts(task, (6000, 6000), number=1)
        found = []
        for function in draft.context.split("\n\n")[:-1]:
            found.append(tuple(function.split("\n")[1:]))
        return found

    plain = bodies(CodeTask(repeated=0.0, similar=0.0))
    assert len(set(plain)) == len(plain) > 25
    copied = bodies(CodeTask(repeated=0.5, similar=0.0))
    assert 0.3 < len(set(copied)) / len(copied) < 0.7
    similar = bodies(CodeTask(repeated=0.0, similar=0.5))
    assert len(set(similar)) == len(similar)
    shared = sum(
        any(other is not body and len(set(other) & set(body)) >= 2 for other in similar)
        for body in similar
    )
    assert shared > len(similar) / 3


def test_splits_share_no_name_and_no_kind_of_line() -> None:
    words: dict[str, set[str]] = {}
    for split in SPLITS:
        (draft,) = drafts(CodeTask(), (3000, 3000), number=1, split=split)
        found = set(re.findall(r"[a-z]+", draft.context))
        plain = " ".join(LINES[split]).replace("{", " ").replace("}", " ")
        words[split] = found - set(VERBS) - set(re.findall("[a-z]+", plain)) - {"def", "return"}
        assert len(words[split]) >= 20
        assert all(split_of(word) == split for word in words[split])
    for one, other in combinations(SPLITS, 2):
        assert not words[one] & words[other]
        assert not set(LINES[one]) & set(LINES[other])


def test_every_kind_of_line_names_a_made_up_word() -> None:
    """So that no line of one split can be a line of another one."""
    assert all("{a}" in line for lines in LINES.values() for line in lines)


def test_budget_seed_and_no_questions() -> None:
    check_budget(CodeTask(), lacking=20)
    check_seeded(CodeTask())
    check_without_questions(CodeTask())


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match=r"repeated -1: give a share"):
        CodeTask(repeated=-1)
    with pytest.raises(InputError, match=r"repeated 0.7 and similar 0.6: give shares"):
        CodeTask(repeated=0.7, similar=0.6)
    with pytest.raises(InputError, match=r"--tokens 20 25: no function"):
        CodeTask().make(source(), random.Random(0), (20, 25), 1)
