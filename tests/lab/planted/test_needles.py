"""RULER's needles and variable tracking: what is hidden, asked and expected."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lab.planted.needles import NeedleTask, TrackingTask
from lab.planted.suite import RULER, Options, Suite, make_tasks
from lab.planted.task import Task
from remamba.errors import InputError
from tests.lab.planted.library import (
    check_budget,
    check_seeded,
    check_without_questions,
    drafts,
    source,
)

NEEDLE = re.compile(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.")


@pytest.mark.parametrize("name", RULER)
def test_contexts_keep_to_their_budget_and_seed(name: str) -> None:
    check_budget(RULER[name])
    check_seeded(RULER[name])
    check_without_questions(RULER[name])


@pytest.mark.parametrize(
    ("name", "needles", "questions", "values"),
    [
        ("ruler-single", 1, 1, 1),
        ("ruler-multi-key", 4, 4, 1),
        ("ruler-multi-value", 4, 1, 4),
        ("ruler-multi-query", 4, 1, 4),
    ],
)
def test_every_number_of_the_keys_asked_is_expected(
    name: str, needles: int, questions: int, values: int
) -> None:
    for draft in drafts(RULER[name]):
        known = NEEDLE.findall(draft.context)
        assert len(known) == len({value for _, value in known}) == needles
        assert len(draft.questions) == questions
        for asked in draft.questions:
            keys = {key for key, _ in known if key in asked.text}
            expected = [value for key, value in known if key in keys]  # in the text's order
            assert list(asked.answers) == expected and len(expected) == values
            assert asked.response == " " + ", ".join(expected)
            texts = [draft.context[slice(*span)] for span in asked.evidence]
            assert [NEEDLE.fullmatch(text)[2] for text in texts] == expected  # type: ignore[index]
            is_one = values == 1
            assert ("What is the special magic number for" in asked.text) is is_one
            assert asked.text.endswith("provided text is" if is_one else "provided text are")


def test_a_chain_is_in_the_order_of_the_text() -> None:
    for draft in drafts(TrackingTask()):
        (asked,) = draft.questions
        first, *rest = [draft.context[slice(*span)] for span in asked.evidence]
        name, value = re.fullmatch(r"VAR ([A-Z]{5}) = (\d{5})\.", first).groups()  # type: ignore[union-attr]
        assert f"assigned the value {value} " in asked.text and "5 variables" in asked.text
        names = [name]
        for text in rest:
            after, before = re.fullmatch(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5})\.", text).groups()  # type: ignore[union-attr]
            assert before == names[-1]
            names.append(after)
        assert list(asked.answers) == names and len(set(names)) == 5
        assert sorted(asked.evidence) == list(asked.evidence)
        assert draft.context.count("VAR ") == 9


def test_a_needle_of_the_open_test_is_asked_in_a_short_question() -> None:
    for draft in drafts(NeedleTask(keys=8, exact=True), questions=8):
        known = dict(NEEDLE.findall(draft.context))
        assert len(draft.questions) == 8
        for asked in draft.questions:
            key = re.fullmatch(r"What is the special magic number for (.+)\?", asked.text)[1]  # type: ignore[index]
            assert asked.answers == (known[key],)


@pytest.mark.parametrize("task", [RULER["ruler-multi-query"], TrackingTask()], ids=["query", "vt"])
def test_too_few_tokens_are_told(task: Task) -> None:
    import random

    with pytest.raises(InputError, match="--tokens 50 60: too short"):
        task.make(source(), random.Random(0), (50, 60), 1)


def test_rows_are_in_rulers_words_and_others_prompts_are_refused() -> None:
    def suite(**options: Any) -> Suite:
        given = Options(tasks=("ruler-single",), split="test", tokens=(300, 400), **options)
        return Suite(source("test"), given, make_tasks(given))

    row = suite().make(0).row
    assert row["document"].startswith("A special magic number is hidden within the following text.")
    assert row["metric"] == "recall" and row["new_tokens"] == 128
    (question,) = row["questions"]
    (span,) = question["evidence"]
    assert NEEDLE.fullmatch(row["document"][slice(*span)])[2] == question["answers"][0]  # type: ignore[index]
    with pytest.raises(
        InputError, match="--prompts longbench: LongBench has none for ruler-single"
    ):
        suite(prompts="longbench")
