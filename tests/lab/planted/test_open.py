"""The open test: each level is new in what it says, and nothing new is anybody else's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab.planted.build import build_planted
from lab.planted.disjoint import content_words, find_shared, open_phrases, shared_words
from lab.planted.kinds import kinds
from lab.planted.language import (
    DESCRIPTIONS,
    ECHOES,
    OPENINGS,
    WHO,
    fill_in,
    language,
    open_words,
    read_sections,
)
from lab.planted.made_up import made_up_word
from lab.planted.open_test import (
    LEVELS,
    OpenTask,
    fresh_phrasings,
    held_out_kinds,
    open_language,
)
from lab.planted.open_test import open_words as new_words
from lab.planted.suite import CLOSED, Options, Suite, make_tasks
from lab.planted.task import SPLITS
from lab.planted.words import FIRST_NAMES, SURNAMES, split_of, value_split
from remamba.errors import InputError
from tests.lab.planted.library import check_budget, drafts, source

ROOT = Path(__file__).resolve().parents[3]
each_level = pytest.mark.parametrize("level", LEVELS)


def said_by(split: str) -> set[str]:
    """Every template that the suite has in a split."""
    known = language(split)
    kinds = (*known.attributes, *known.lists)
    said = {t for k in kinds for t in (*k.facts, *k.questions, *k.names, *k.clauses)}
    said |= {t for k in known.relations for t in (*k.facts, *k.descriptions)}
    return said | {t for part in (OPENINGS, ECHOES, WHO, DESCRIPTIONS) for t in part[split]}


def test_new_words_are_in_no_list_and_in_no_sentence() -> None:
    words = new_words()
    every = [word for found in words.values() for word in found]
    assert len({word.lower() for word in every}) == len(every) == 1080
    known = {word.lower() for word in (*FIRST_NAMES, *SURNAMES, *open_words())}
    for split in SPLITS:
        for kind in (*language(split).attributes, *language(split).lists):
            known |= {value.lower() for value in kind.values}
        known |= {word for text in said_by(split) for word in content_words(text)}
    assert not known & {word.lower() for word in every}
    # training draws its made-up words, full names and values by these hashes
    assert {split_of(word) for word in (*words["first names"], *words["surnames"])} == {"test"}
    assert {split_of(word) for word in words["values"]} == {"test"}
    assert {value_split(word) for word in (*words["values"], *words["numbers"])} == {"test"}
    rng = random.Random(0)
    drawn = {made_up_word(rng, "train") for _ in range(3000)}
    assert not drawn & {word.lower() for word in every}


def test_no_new_word_is_one_token_of_the_embedded_models() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ROOT / "remamba/assets/remamba-tiny/tokenizer.json"))
    words = new_words()
    lengths = [len(tokenizer.encode(f" {w}").ids) for name in words for w in words[name]]
    assert min(lengths) >= 2
    names = [len(tokenizer.encode(f" {w}").ids) for w in words["first names"] + words["surnames"]]
    assert min(names) >= 3


def test_new_phrasings_are_nobody_elses_and_have_a_word_of_their_own() -> None:
    every = {text for split in SPLITS for text in said_by(split)}
    grammar = [kind for split in SPLITS for kind in kinds(split)]
    every |= {text for kind in grammar for text in (*kind.facts, *kind.questions)}
    assert not every & set(open_phrases())
    known_count = count = 0
    for own, new in zip(language("train").attributes, fresh_phrasings(), strict=True):
        phrasings = (*own.facts, *own.questions, *own.names, *own.clauses)
        known = {word for text in phrasings for word in content_words(text)}
        assert len(new.facts) == len(new.questions) == 4
        for text in (*new.facts, *new.questions):
            words = content_words(text)
            shared = shared_words(words, known)
            assert words - shared, f"{own.name}: {text}"
            known_count, count = known_count + len(shared), count + len(words)
    assert known_count / count < 0.25  # the suite's own test questions: 0.97


def test_held_out_kinds_are_about_nothing_that_a_training_kind_is_about() -> None:
    about = {w for said in read_sections("open_test_kinds.txt").values()
             for w in said["about"][0].split()}  # fmt: skip
    known = set()
    for kind in (*language("train").attributes, *language("train").lists):
        said = (*kind.questions, *kind.names)
        known |= {kind.name} | {word for text in said for word in content_words(text)}
    for kind in kinds("train"):
        said = (*kind.facts, *kind.questions, *kind.names)
        known |= {word for text in said for word in content_words(text)}
    assert sorted(about & known) == []
    for kind in held_out_kinds("ask"):
        assert len(kind.facts) == 3 and len(kind.questions) == 2


def test_apart_questions_share_no_word_with_any_statement_of_their_kind() -> None:
    for asked in held_out_kinds("apart"):
        stated = {word for text in asked.facts for word in content_words(text)}
        for question in asked.questions:
            assert not shared_words(content_words(question), stated), question
    for asked in held_out_kinds("ask"):
        for question in asked.questions:
            for text in asked.facts:
                assert shared_words(content_words(question), content_words(text)), question


@each_level
def test_a_level_is_new_in_what_it_says_and_old_in_all_else(level: str) -> None:
    new, words = LEVELS[level], new_words()
    names = set(words["first names"]) | set(words["surnames"])
    values = {w.lower() for w in (*words["values"], *words["numbers"])}
    fresh = {t for kind in fresh_phrasings() for t in (*kind.facts, *kind.questions)}
    old = said_by("test")
    asked = 0
    for draft in drafts(OpenTask(level=level), split="test"):
        for question in draft.questions:
            ((start, stop),) = question.evidence
            evidence = draft.context[start:stop]
            (answer,) = question.answers
            assert question.response == f" {answer}" and answer in evidence
            assert (answer.lower() in values) is new.values
            person = next(n for n in evidence.split() if n.strip(",.'").removesuffix("'s") in
                          names | set(FIRST_NAMES))  # fmt: skip
            assert (person.strip(",.'").removesuffix("'s") in names) is new.names
            asked += 1
            if new.kinds:
                kinds = held_out_kinds(new.kinds)
            else:
                kinds = open_language(level, random.Random(0)).attributes
            said = [t for k in kinds for t in k.questions]
            ours = [t for t in said if _fits(t, question.text)]
            assert ours and all((t in old) is not (new.questions or bool(new.kinds)) for t in ours)
            if not new.kinds:
                assert all((t in fresh) is new.questions for t in ours)
    assert asked > 20
    check_levels_of_sentences(level)


def _fits(template: str, text: str) -> bool:
    head, tail = template.split("{p}", 1)
    return text.startswith(head) and text.endswith(tail)


def check_levels_of_sentences(level: str) -> None:
    said = open_language(level, random.Random(0))
    fresh = {t for kind in fresh_phrasings() for t in kind.facts}
    for kind in said.attributes:
        if LEVELS[level].kinds:
            continue
        assert (set(kind.facts) <= fresh) is LEVELS[level].sentences


@each_level
def test_a_fact_is_told_once_of_a_person(level: str) -> None:
    made = OpenTask(level=level).facts(random.Random(0), 60, "test")
    assert len({(fact.person, fact.attribute.name) for fact in made}) == 60
    for fact in made:
        assert fact.value in fact.text and fact.person in fact.text


def test_contexts_keep_to_their_budget() -> None:
    class Tested(OpenTask):
        def facts(self, rng: random.Random, count: int, split: str) -> list:
            return super().facts(rng, count, "test")

    check_budget(Tested(level="open-all"))


def test_the_open_test_is_no_training() -> None:
    for split in ("train", "dev"):
        options = Options(tasks=("open-all",), split=split)
        with pytest.raises(InputError, match=f"--split {split} with --tasks open-all"):
            Suite(source(split), options, make_tasks(options)).make(0)


def test_no_row_of_training_has_a_new_word_or_sentence(classes: Path) -> None:
    texts = []
    tasks = (*CLOSED, "kinds")
    options = Options(
        tasks=tasks, tokens=(300, 600), open_values=0.7, facts_per_1000=60, classes=classes
    )
    suite = Suite(source(), options, make_tasks(options))
    for number in range(90):
        row = suite.make(number).row
        texts += [row["document"], *(q["question"] + q["response"] for q in row["questions"])]
    assert find_shared(texts) == []


def test_what_is_shared_is_found_and_refused(tmp_path: Path) -> None:
    name, value = new_words()["surnames"][7], new_words()["values"][3]
    phrase = fresh_phrasings()[0].facts[0]
    text = fill_in(phrase, "Ada Finch", "red")
    assert find_shared([f"It was Mr. {name.upper()}'s."]) == [name.lower()]
    assert find_shared([f"so {value}, then", text[0].upper() + text[1:]]) == sorted([value, phrase])
    assert find_shared([text.replace("greatcoat", "coat"), name[:-1]]) == []
    (tmp_path / "book.txt").write_text(f"The house of {name} stood by the river.\n\n" * 40)
    (tmp_path / "good.txt").write_text(
        "The house of the keeper stood by the river, we know.\n\n" * 40
    )
    options = Options(tasks=("open-names",), split="test", tokens=(60, 80), questions=1)
    books = [tmp_path / "good.txt"]
    with pytest.raises(InputError, match=f"book.txt: it has words .*{name.lower()}"):
        build_planted(books, tmp_path / "x.jsonl", 1, options, apart_from=[tmp_path / "book.txt"])
    assert not (tmp_path / "x.jsonl").exists()
    made = build_planted(books, tmp_path / "x.jsonl", 1, options, apart_from=books)
    assert made["questions"] == 1
    rows = [tmp_path / "x.jsonl"]
    with pytest.raises(InputError, match=r"x\.jsonl: it has words"):  # rows are searched, too
        build_planted(books, tmp_path / "y.jsonl", 1, options, apart_from=rows)
