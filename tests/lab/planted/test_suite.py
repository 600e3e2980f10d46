"""The suite: which task a row has, its prompt, and that spans and budgets survive the prompt."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.planted.suite import CLOSED, SHORT_PROMPTS, Options, Suite, make_tasks
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError
from remamba.evals.longbench import fill, templates
from tests.lab.planted.library import source, tokenizer

ROWS = 3 * len(CLOSED)


def suite(classes: Path | None = None, **options: Any) -> Suite:
    options = {"tasks": CLOSED, "tokens": (300, 500), "classes": classes, **options}
    made = Options(**options)
    return Suite(source(made.split), made, make_tasks(made))


@dataclass
class Toy:
    """Numbers in place of prose; fails as often as it is told."""

    failures: int = 0
    answered: bool = True

    name = "facts"
    metric = "exact"
    template = "passage_count"
    new_tokens = 3

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        if self.failures:
            self.failures -= 1
            raise InputError(f"--tokens: {self.failures}")
        context = f"{rng.random()} holds 7 for {tokens[0]} to {tokens[1]}"
        at = context.index("7 for")
        asked = Asked("which", " 7", ((at, at + 1), (0, 3)))
        return Draft(context, (asked,) * (questions * self.answered))


def toy(task: Toy, **options: Any) -> Suite:
    return Suite(source(), Options(**options), {"facts": task})


def test_every_task_has_rows_that_read_as_one_text(classes: Path) -> None:
    for prompts in ("short", "longbench"):
        made = suite(classes, prompts=prompts)
        seen = set()
        for number in range(ROWS):
            row, _ = made.make(number)
            task = made.tasks[row["task"]]
            seen.add(row["task"])
            assert row["id"] == f"{row['task']}-train-0-{number}"
            assert (row["metric"], row["new_tokens"]) == (task.metric, task.new_tokens)
            document = row["document"]
            assert row["tokens"] == len(tokenizer().encode(document).ids) <= 500
            assert row["tokens"] >= 270
            for question in row["questions"]:
                prompt, response = question["question"], question["response"]
                assert prompt and response == response.rstrip() and "\n" not in response
                assert prompt.endswith("\n") or (prompt[-1] != " " and response[0] == " ")
                assert response[0] != " " or response[1] != " " or prompt.endswith("\n")
                assert all(answer == answer.strip() for answer in question["answers"])
                assert response.strip() in question["answers"]
                assert question["evidence"]
                for start, stop in question["evidence"]:
                    assert 0 <= start < stop <= len(document)
                    assert document[start:stop] == document[start:stop].strip()
        assert seen == set(CLOSED)


def test_a_longbench_prompt_is_longbenchs_template(classes: Path) -> None:
    made = suite(classes, prompts="longbench")
    for number in range(ROWS):
        row, _ = made.make(number)
        template = made.tasks[row["task"]].template
        template = templates()["repobench-p" if template == "lcc" else template]
        before, _, after = template.partition("{context}")
        assert row["document"].startswith(before)
        context = row["document"][len(before) :]
        for question in row["questions"]:
            asked = question["question"]
            head, _, tail = after.rpartition("{input}")
            text = asked[len(head) : len(asked) - len(tail.rstrip(" "))]
            assert fill(template, context, text).text.rstrip(" ") == row["document"] + asked


def test_the_instruction_moves_the_evidence_and_counts(classes: Path) -> None:
    instruction = fill(templates()["passage_count"], "", "").before
    tokens = len(tokenizer().encode(instruction).ids)
    for prompts, before, used in (("short", "", 0), ("longbench", instruction, tokens)):
        row, _ = toy(Toy(), prompts=prompts, tokens=(400, 500), questions=2).make(0)
        document, question = row["document"], row["questions"][0]
        assert document.startswith(before)
        assert document.endswith(f"for {400 - used} to {500 - used}")
        first, second = ([start, stop] for start, stop in question["evidence"])
        assert document[slice(*first)] == "7" == question["answers"][0]
        assert second == [len(before), len(before) + 3]
    assert question["question"].endswith("\n\nThe final answer is:")  # the space is the answer's
    with pytest.raises(InputError, match="--tokens 50 60: the instruction of facts has"):
        toy(Toy(), prompts="longbench", tokens=(50, 60)).make(0)


def test_tokens_join_at_the_answer(classes: Path) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer().encode(text).ids

    for prompts in ("short", "longbench"):
        made = suite(classes, prompts=prompts)
        for number in range(ROWS):
            row, _ = made.make(number)
            for question in row["questions"]:
                parts = [question["question"], question["response"]]
                assert ids(parts[0]) + ids(parts[1]) == ids("".join(parts)), parts


def test_a_row_is_a_function_of_seed_split_and_number(classes: Path) -> None:
    made = suite(classes, seed=3)
    rows = [made.make(number) for number in range(2 * len(CLOSED))]
    assert suite(classes, seed=3).make(5) == rows[5]
    assert suite(classes, seed=4).make(5).row["document"] != rows[5].row["document"]
    alone = suite(classes, seed=3, tasks=(rows[5].row["task"],))
    assert alone.make(5) == rows[5]  # other tasks beside it change nothing


def test_tasks_come_by_their_weights_in_any_run_of_rows() -> None:
    made = Suite(source(), Options(), {name: Toy() for name in CLOSED})
    for start in (0, 1000):
        counts = Counter(made.task_of(number) for number in range(start, start + 80))
        assert set(counts) == set(CLOSED) and all(8 <= count <= 12 for count in counts.values())
    weighed = Options(tasks=("facts", "count"), weights=(3, 1))
    made = Suite(source(), weighed, {"facts": Toy(), "count": Toy()})
    counts = Counter(made.task_of(number) for number in range(1000))
    assert abs(counts["facts"] - 750) <= 3 and counts.total() == 1000


def test_a_draft_that_fails_is_drawn_again_and_counted() -> None:
    made = toy(Toy(failures=3)).make(0)
    assert made.drafts == 4 and made.row != toy(Toy()).make(0).row
    with pytest.raises(InputError, match="--tokens: 10"):
        toy(Toy(failures=20)).make(0)
    with pytest.raises(InputError, match="too short for a question of facts"):
        toy(Toy(answered=False)).make(0)


def test_plain_text_has_the_same_documents(classes: Path) -> None:
    asked = suite(classes)
    texts = suite(classes, no_questions=True, prompts="longbench")
    for number in range(len(CLOSED)):
        row, text = asked.make(number).row, texts.make(number).row
        assert text == {
            **{name: row[name] for name in ("id", "task", "tokens")},
            "text": row["document"],
        }
    prose = suite(tasks=("facts",), no_questions=True, facts_per_1000=0).make(0).row
    assert prose["text"] and "questions" not in prose


@pytest.mark.parametrize("task", ["facts", "two-hop", "many-facts", "dictionary", "code"])
def test_no_answer_and_no_question_of_one_split_occurs_in_another(task: str) -> None:
    answers: dict[str, set[str]] = {}
    questions: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        made = suite(tasks=(task,), split=split, tokens=(600, 900))
        asked = [q for number in range(12) for q in made.make(number).row["questions"]]
        answers[split] = {item for q in asked for item in q["answers"][0].split(", ")}
        questions[split] = {q["question"] for q in asked}
    for found in (answers, questions):
        assert (
            not found["train"] & (found["dev"] | found["test"]) and not found["dev"] & found["test"]
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ("fact",)}, "--tasks fact: give some of open-values, open-names,"),
        ({"tasks": ("facts", "facts")}, "each once"),
        ({"tasks": ()}, "one task or more"),
        ({"weights": (1.0, 2.0)}, "one for each of 1 tasks"),
        ({"weights": (0.0,)}, "numbers above 0"),
        ({"tokens": (900, 100)}, "50 <= LO <= HI"),
        ({"questions": 0}, "--questions 0: give 1 or more"),
        ({"split": "eval"}, "one of train, dev, test"),
        ({"prompts": "long"}, "one of short, longbench"),
        ({"tasks": ("few-shot",)}, "--classes"),
        ({"kinds": (0, 2)}, "1 <= LO <= HI"),
        ({"facts_per_1000": 0.0}, "--facts-per-1000 0"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        suite(**{"tasks": ("facts",), **options}).make(0)


def test_prompts_have_their_places() -> None:
    for template in SHORT_PROMPTS.values():
        assert template.count("{context}") == 1 and template.count("{input}") <= 1
