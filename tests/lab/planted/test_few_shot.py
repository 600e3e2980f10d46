"""Classes of questions: read, split by the question, shown as examples, asked."""

from __future__ import annotations

import gzip
import lzma
import random
import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from lab.planted.few_shot import COARSE, FINE, Example, FewShotTask, read_classes
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

WORDS = ("river", "king", "engine", "animal", "city", "word", "star", "book", "ship", "tower")


@cache
def examples() -> tuple[Example, ...]:
    rng = random.Random(0)
    found = []
    for i, fine in enumerate(list(FINE) * 100):
        words = " ".join(rng.choices(WORDS, k=rng.randint(2, 8)))
        found.append(Example(f"What {words} is number {i} ?", fine.split(":")[0], fine))
    return tuple(found)


def shown(context: str) -> list[tuple[str, str]]:
    """(question, label) of each example; there is nothing else in the context."""
    pairs = re.findall(r"Question: (.+)\nType: (.+)", context)
    assert "\n".join(f"Question: {q}\nType: {label}" for q, label in pairs) == context
    return pairs


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("fine", [False, True])
def test_the_asked_question_is_no_example_and_its_class_is_right(split: str, fine: bool) -> None:
    classes = {e.question: FINE[e.fine] if fine else COARSE[e.coarse] for e in examples()}
    answers = set()
    for draft in drafts(FewShotTask(examples(), fine), (700, 1200), split=split):
        pairs = shown(draft.context)
        assert all(classes[question] == label for question, label in pairs)
        assert len(set(pairs)) == len(pairs)
        assert len(draft.questions) == 5
        for asked in draft.questions:
            match = re.fullmatch(r"Question: (.+)\nType:", asked.text)
            assert match and match[1] not in dict(pairs)
            assert asked.response == " " + classes[match[1]]
            assert split_of(match[1]) == split
            answers.add(asked.response)
    assert len(answers) > (20 if fine else 4)


def test_the_evidence_are_labels_of_the_asked_class() -> None:
    for draft in drafts(FewShotTask(examples()), (400, 1500), number=20):
        labels = [label for _, label in shown(draft.context)]
        spans = [match.span(1) for match in re.finditer(r"\nType: (.+)", draft.context)]
        for asked in draft.questions:
            same = [
                s for s, label in zip(spans, labels, strict=True) if label == asked.response[1:]
            ]
            assert 1 <= len(asked.evidence) == min(len(same), 8)
            assert set(asked.evidence) <= set(same)
            assert list(asked.evidence) == sorted(asked.evidence)


def test_of_many_the_likest_are_the_evidence() -> None:
    base = [Example(f"Who saw {i} ships ?", "HUM", "HUM:ind") for i in range(400)]
    like = [
        Example(f"When did the old clock of tower {i} fall ?", "HUM", "HUM:ind") for i in range(10)
    ]
    asked = Example("When did the old clock of tower 99 stop ?", "HUM", "HUM:ind")
    task = FewShotTask((*base, *like, asked))
    chosen = [base[0], like[3], base[1], like[5]]
    labels = [(n, n + 1) for n in range(4)]
    assert task._evidence(asked, chosen, labels) == tuple(labels)
    many = [*base[:20], like[0], *base[20:40], like[1]]
    found = task._evidence(asked, many, [(n, n + 1) for n in range(42)])
    assert len(found) == 8 and {(20, 21), (41, 42)} <= set(found)


def test_all_classes_occur() -> None:
    for draft in drafts(FewShotTask(examples()), (450, 450), questions=2):
        assert {label for _, label in shown(draft.context)} == set(COARSE.values())
    for draft in drafts(FewShotTask(examples(), fine=True), (3500, 3500), number=4):
        assert {label for _, label in shown(draft.context)} == set(FINE.values())
    assert len(set(FINE.values())) == len(FINE) == 50


def test_splits_share_no_question() -> None:
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        seen[split] = set()
        for draft in drafts(FewShotTask(examples()), split=split):
            seen[split] |= {question for question, _ in shown(draft.context)}
            seen[split] |= {asked.text[10:-6] for asked in draft.questions}
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_budget_seed_and_no_questions() -> None:
    task = FewShotTask(examples())
    check_budget(task, lacking=40)
    check_seeded(task)
    check_without_questions(task)


def test_classes_are_read_from_plain_and_packed_files(tmp_path: Path) -> None:
    lines = "HUM:ind Who sang Caf\xe9  Noir ?\r\n\nLOC:city Where is it ?\n"
    lines += "HUM:ind Who sang Caf\xe9 Noir ?\n"
    lines += "NUM:date When ?\nNUM:count When ?\nNUM:date When ?\n"  # nobody knows which
    expected = (
        Example("Who sang Caf\xe9 Noir ?", "HUM", "HUM:ind"),
        Example("Where is it ?", "LOC", "LOC:city"),
    )
    data = lines.encode("latin-1")
    for name, packed in (
        ("a.txt", data),
        ("a.txt.xz", lzma.compress(data)),
        ("a.txt.gz", gzip.compress(data)),
    ):
        (tmp_path / name).write_bytes(packed)
        assert read_classes(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("HUM:ind Who ?\nWho ?\n", r"a\.txt:2: 'Who \?' is no 'COARSE:fine question'"),
        ("HUM:city Who ?\n", r"a\.txt:1: 'HUM:city Who \?' is no"),
        ("HUM:ind\n", r"a\.txt:1: 'HUM:ind' is no"),
        ("\n", r"there is no question in this file"),
    ],
)
def test_what_is_no_class_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "a.txt")


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--classes .*b\.txt: there is no such file"):
        read_classes(tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"--tokens 60 60: an example of each class is longer"):
        FewShotTask(examples()).make(source(), random.Random(0), (60, 60), 1)
    with pytest.raises(InputError, match=r"the split dev has only \d+ examples"):
        FewShotTask(examples()[:300]).make(source("dev"), random.Random(0), (5000, 5000), 1)
