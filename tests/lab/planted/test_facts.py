"""Facts of one hop, of two, and lists of facts, planted in books: answers and evidence."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lab.planted import words
from lab.planted.facts import FactsTask
from lab.planted.hops import TwoHopTask, find_chains
from lab.planted.language import VALUES, Relation, language, open_words
from lab.planted.many_facts import ManyFactsTask, find_lists
from lab.planted.people import Bond, Fact, draw_people, draw_value, with_few_values
from lab.planted.planting import plant
from lab.planted.task import SPLITS, Draft, Task
from lab.planted.words import split_of, value_split
from remamba.errors import InputError
from tests.lab.planted.library import check_budget, check_seeded, drafts, source, tokenizer

TASKS = (FactsTask(), TwoHopTask(), ManyFactsTask())
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
each_split = pytest.mark.parametrize("split", SPLITS)


def pattern(template: str) -> re.Pattern[str]:
    """What a statement's template matches anywhere in a text: person, value or the other person."""
    text = re.escape(template[:-1] if template.endswith(".") else template)
    for place, group in (
        ("p", r"(?P<p>[A-Z][a-z]+ [A-Z][a-z]+)"),
        ("q", r"(?P<q>[A-Z][a-z]+ [A-Z][a-z]+)"),
        ("v", r"(?P<v>\w+)"),
        ("a", "an?"),
    ):
        text = text.replace(re.escape(f"{{{place}}}"), group)
    if text[0] != "(":
        text = f"(?i:{text[0]})" + text[1:]
    return re.compile(r"\b" + text + r"(?=[.,])")


def matches(templates: Iterable[str], text: str) -> set[tuple[str, str]]:
    """(person, value or other person) of every statement in the text."""
    found = set()
    for template in templates:
        for match in pattern(template).finditer(text):
            groups = match.groupdict()
            found.add((groups["p"], groups.get("v") or groups["q"]))
    return found


def evidence_of(draft: Draft, number: int) -> list[str]:
    """What the spans of a question hold; each is sentences of the context."""
    texts = []
    for start, stop in draft.questions[number].evidence:
        text = draft.context[start:stop]
        assert text[0].isupper() and text[-1] == "." and text == text.strip()
        assert start == 0 or draft.context[start - 1] == " "
        assert stop == len(draft.context) or draft.context[stop].isspace()
        texts.append(text)
    return texts


def asked_for(split: str, text: str, templates: str) -> list[tuple[str, str]]:
    """(kind, what stands in its place) of all questions, clauses ... that read like the text."""
    known = language(split)
    text = text.replace(" an ", " a ")
    found = []
    for kind in (*known.attributes, *known.lists, *known.relations):
        for template in getattr(kind, templates, ()):
            head, tail = re.split(
                r"\{[pvq]\}", template.replace("{a}", "a").replace(" an ", " a "), maxsplit=1
            )
            match = re.fullmatch(re.escape(head) + "(.+)" + re.escape(tail), text)
            if match:
                found.append((kind.name, match[1]))
    return found


def known_values(split: str, kind: str, text: str) -> set[tuple[str, str]]:
    """All that a text states of an attribute or relation, by its statements alone."""
    language_ = language(split)
    kinds = (*language_.attributes, *language_.lists, *language_.relations)
    return matches(next(one.facts for one in kinds if one.name == kind), text)


# -- what all three promise --


@each_task
def test_contexts_keep_to_their_budget_and_seed(task: Task) -> None:
    check_budget(task)
    check_seeded(task)


@each_task
@pytest.mark.parametrize("tokens", [(220, 300), (300, 300)])
def test_short_contexts_keep_to_their_budget(task: Task, tokens: tuple[int, int]) -> None:
    place = source()
    lengths = [
        len(tokenizer().encode(task.make(place, random.Random(i), tokens, 2).context).ids)
        for i in range(20)
    ]
    assert max(lengths) <= tokens[1] and min(lengths) >= tokens[0] - 10


@each_task
@each_split
def test_answers_stand_in_their_evidence_and_belong_to_the_split(task: Task, split: str) -> None:
    asked = 0
    for draft in drafts(task, split=split):
        assert draft.context == draft.context.strip()
        for number, question in enumerate(draft.questions):
            (answer,) = question.answers
            assert question.response == " " + answer
            evidence = evidence_of(draft, number)
            assert len(set(question.evidence)) == len(evidence)
            items = answer.split(", ")
            for item, text in zip(items, evidence[-len(items) :], strict=True):
                # the tokens of the answer are the tokens in the document
                assert re.search(rf" {item}\b|^{item}\b", text), (item, text)
                assert split in (value_split(item), split_of(item))
            asked += 1
    assert asked > 20


@each_task
def test_plain_text_is_the_same_context_without_questions(task: Task) -> None:
    asked = task.make(source(), random.Random(3), (400, 600), 5)
    plain = task.make(source(), random.Random(3), (400, 600), 0)
    assert asked.questions and plain.questions == ()
    assert asked.context == plain.context


@pytest.mark.parametrize("kind", [FactsTask, TwoHopTask, ManyFactsTask])
def test_without_facts_there_is_prose_and_nothing_to_ask(kind: type) -> None:
    task = kind(facts_per_1000=0)
    context = task.make(source(), random.Random(0), (100, 200), 0).context
    assert not set(re.findall(r"[A-Z]\w+ (?=[A-Z])", context))  # no full name
    with pytest.raises(InputError, match="--facts-per-1000 0: there is nothing to ask"):
        task.make(source(), random.Random(0), (100, 200), 1)
    for wrong in ({"facts_per_1000": -1}, {"facts_per_1000": 101}, {"echo": 1.5}):
        with pytest.raises(InputError, match="give a"):
            kind(**wrong)


@each_task
def test_too_few_tokens_are_told(task: Task) -> None:
    with pytest.raises(InputError, match=r"--tokens 8 9: too short .*; give more tokens"):
        task.make(source(), random.Random(0), (8, 9), 1)
    with pytest.raises(InputError, match="--tokens 90000 90000: the books are too short"):
        task.make(source(), random.Random(0), (90000, 90000), 1)


@each_split
def test_people_are_different_and_some_are_alike(split: str) -> None:
    people = draw_people(random.Random(1), 40, language(split))
    assert len(set(people)) == 40 and {split_of(name) for name in people} == {split}
    assert len({name.split()[0] for name in people}) < 36
    assert len({name.split()[1] for name in people}) < 36


def test_planted_sentences_stand_where_they_are_told() -> None:
    attribute = language("train").attributes[0]
    facts = [Fact("", attribute, "", f"Planted {i}.") for i in range(4)]
    context, same, spans = plant(
        source(), random.Random(0), (500, 500, 500), facts, (0.0, 0.5, 1.0)
    )
    assert same == facts
    assert [context[slice(*span)] for span in spans] == [fact.text for fact in facts]
    places = [start / len(context) for start, _ in spans]
    assert places[0] < 0.1 and 0.3 < places[1] < 0.7 and places[2] > 0.85


# -- one hop --


@each_split
def test_a_fact_is_asked_by_its_person_and_attribute(split: str) -> None:
    for draft in drafts(FactsTask(), split=split):
        assert len({question.evidence for question in draft.questions}) == len(draft.questions)
        for number, question in enumerate(draft.questions):
            (text,) = evidence_of(draft, number)
            asked = asked_for(split, question.text, "questions")
            assert len(asked) == 1
            kind, person = asked[0]
            # among all that the context says of this attribute, this alone is of the person
            known = known_values(split, kind, draft.context)
            assert {value for who, value in known if who == person} == {question.answers[0]}
            assert (person, question.answers[0]) in known_values(split, kind, text)


def test_a_person_has_one_value_of_an_attribute() -> None:
    for seed in range(20):
        made = FactsTask().facts(random.Random(seed), 60, "train")
        assert len({(fact.person, fact.attribute.name) for fact in made}) == 60
        firsts = {fact.person.split()[0] for fact in made}
        assert len(firsts) < len({fact.person for fact in made})  # some share a first name


@pytest.mark.parametrize("kinds", [(1, 1), (2, 4), (13, 13)])
def test_a_context_has_as_many_kinds_of_facts_as_asked(kinds: tuple[int, int]) -> None:
    found = set()
    for number in range(30):
        made = FactsTask(kinds=kinds).facts(random.Random(number), 200, "train")
        assert len({(fact.person, fact.attribute.name) for fact in made}) == 200
        found.add(len({fact.attribute.name for fact in made}))
    assert found == set(range(kinds[0], kinds[1] + 1))


def test_facts_are_stated_in_as_few_sentences_as_asked() -> None:
    def said(sentences: int | None) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for number in range(20):
            task = FactsTask(sentences=sentences, echo=0.0)
            for fact in task.facts(random.Random(number), 100, "train"):
                templates = [
                    one for one in known[fact.attribute.name] if pattern(one).search(fact.text)
                ]
                found.setdefault(fact.attribute.name, set()).update(templates)
        return found

    known = {one.name: one.facts for one in language("train").attributes}
    few, every = said(2), said(None)
    assert all(few[name] & set(known[name][:2]) for name in known)
    assert all(len(few[name]) <= 4 < len(every[name]) for name in known)
    with pytest.raises(InputError, match="--sentences 0: give 1 or more"):
        FactsTask(sentences=0)


def values_of_kinds(task: FactsTask) -> list[set[str]]:
    """The different values of each kind, of 200 facts of each of some documents."""
    found: dict[tuple[int, str], set[str]] = {}
    for number in range(20):
        for fact in task.facts(random.Random(number), 200, "train"):
            found.setdefault((number, fact.attribute.name), set()).add(fact.value)
    return list(found.values())


@pytest.mark.parametrize("values", [(1, 1), (2, 3), (5, 5)])
def test_a_kind_has_as_few_values_as_asked(values: tuple[int, int]) -> None:
    found = values_of_kinds(FactsTask(values=values))
    assert len(found) == 20 * 13 and max(map(len, found)) == values[1]
    assert len(set.union(*found)) > 100  # each document has others
    assert max(map(len, values_of_kinds(FactsTask()))) > 10
    # where hardly a value is drawn twice, they are just as many as asked
    many = replace(language("train").attributes[0], values=tuple(f"v{i}" for i in range(10**6)))
    drawn = with_few_values(random.Random(0), [many] * 50, values)
    assert {len(kind.values) for kind in drawn} == set(range(values[0], values[1] + 1))


def test_few_values_may_be_open_ones() -> None:
    known = {value for values in VALUES.values() for value in values}
    found = values_of_kinds(FactsTask(values=(2, 2), open_values=1.0))
    assert max(map(len, found)) == 2 and not known & set.union(*found)


class FewChoices(random.Random):
    """A generator that fails after 1,000 choices, instead of going on for ever."""

    left = 1000

    def choice(self, seq: Sequence) -> Any:
        self.left -= 1
        assert self.left, "choices without end"
        return super().choice(seq)


@pytest.mark.parametrize("values", [("123", "456"), ("12", "34"), ("12", "345")], ids=str)
def test_numbers_of_few_lengths_are_drawn(values: tuple[str, ...]) -> None:
    number = next(kind for kind in language("train").attributes if kind.name == "number")
    few, rng = replace(number, values=values), FewChoices(0)
    assert {draw_value(rng, few) for _ in range(50)} == set(values)


def test_all_values_are_left_without_a_draw() -> None:
    kinds, rng = language("train").attributes, random.Random(0)
    before = rng.getstate()
    assert with_few_values(rng, kinds, None) == list(kinds)
    assert rng.getstate() == before
    assert with_few_values(rng, kinds, (1, 2)) != list(kinds)


@pytest.mark.parametrize("values", [(0, 2), (3, 2)])
def test_few_values_have_a_range(values: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="--values {} {}: give 1 <= LO <= HI".format(*values)):
        FactsTask(values=values)


@pytest.mark.parametrize("kinds", [(0, 2), (3, 2), (1, 14)])
def test_kinds_and_depth_have_ranges(kinds: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="1 <= LO <= HI <= 13"):
        FactsTask(kinds=kinds)
    with pytest.raises(InputError, match="--depth 2: give a fraction"):
        FactsTask(depth=2)


def test_depth_places_the_asked_facts() -> None:
    for depth, low, high in ((0.0, 0.0, 0.3), (0.5, 0.2, 0.8), (1.0, 0.7, 1.0)):
        for draft in drafts(FactsTask(depth=depth), (600, 600), questions=1):
            place = draft.questions[0].evidence[0][0] / len(draft.context)
            assert low <= place <= high


def test_echo_says_the_fact_again() -> None:
    for echo, sentences in ((0.0, 1), (1.0, 2)):
        for fact in FactsTask(echo=echo).facts(random.Random(0), 50, "dev"):
            assert len(re.findall(r"\.", fact.text)) == sentences
            assert len(re.findall(rf"\b{fact.value}\b", fact.text)) == sentences


# -- two hops --


def bridges(split: str, text: str, phrase: str) -> set[str]:
    """Everyone in the text whom the phrase of a question fits."""
    found = set()
    for name, person in asked_for(split, phrase, "descriptions"):
        found |= {q for p, q in known_values(split, name, text) if p == person}
    for frame in language(split).descriptions:
        head = frame.replace("{c}", "")
        if phrase.startswith(head):
            for name, value in asked_for(split, phrase[len(head) :], "clauses"):
                found |= {p for p, v in known_values(split, name, text) if v == value}
    return found


@each_split
def test_the_question_of_two_hops_has_one_answer(split: str) -> None:
    seen = set()
    for draft in drafts(TwoHopTask(), (700, 900), split=split):
        for number, question in enumerate(draft.questions):
            first, second = evidence_of(draft, number)
            asked = asked_for(split, question.text, "questions")
            fitting = []
            for kind, phrase in asked:  # "of the one who lives in ..." may be cut in two ways
                for person in bridges(split, draft.context, phrase):
                    fitting.append((kind, person))
            ((kind, person),) = fitting
            assert person not in question.text and person in first and person in second
            known = known_values(split, kind, draft.context)
            assert {v for p, v in known if p == person} == {question.answers[0]}
            assert (person, question.answers[0]) in known_values(split, kind, second)
            # the second hop alone leaves a choice
            assert len({v for _, v in known}) > 1 and len({p for p, _ in known}) > 1
            seen.add(any(name in first for name in re.findall("[A-Z]\\w+ [A-Z]\\w+", phrase)))
    assert seen == {True, False}  # by a relation, and by an attribute


def test_chains_need_a_choice_at_both_hops() -> None:
    coat, lantern, sail = language("train").attributes[:3]
    relation = Relation("cousin", (), ())

    def fact(person: str, attribute: object, value: str) -> Fact:
        return Fact(person, attribute, value, "")  # type: ignore[arg-type]

    facts: list[Fact | Bond] = [
        fact("A", coat, "red"),
        fact("B", coat, "blue"),
        fact("A", lantern, "green"),
        fact("B", lantern, "grey"),
    ]
    assert sorted(find_chains(facts)) == [(0, 2), (1, 3), (2, 0), (3, 1)]
    # another red coat: no one is named by it; the answer may still be asked for
    assert sorted(find_chains([*facts, fact("C", coat, "red")])) == [(1, 3), (2, 0), (3, 1)]
    # a single sail names nobody in particular, and its colour can be guessed
    assert sorted(find_chains([*facts, fact("A", sail, "teal")])) == sorted(find_chains(facts))
    # one cousin is no choice, two are
    bond = Bond("C", relation, "A", "")
    assert sorted(find_chains([*facts, bond])) == sorted(find_chains(facts))
    more = find_chains([*facts, bond, Bond("D", relation, "E", "")])
    assert set(more) - set(find_chains(facts)) == {(4, 0), (4, 2)}
    # what the question says is not its answer
    same = [fact("A", coat, "red"), fact("A", lantern, "red"), *facts[1:2], *facts[3:]]
    assert (0, 1) not in find_chains(same)


def test_relations_are_pairs_of_different_people() -> None:
    for count in (4, 7, 20, 150):
        made = TwoHopTask(relations=0.5).facts(random.Random(count), count, "test")
        assert len(made) == count
        bonds = [fact for fact in made if isinstance(fact, Bond)]
        assert len(bonds) == round(count / 2)
        for name in {bond.relation.name for bond in bonds}:
            people = [
                person
                for bond in bonds
                if bond.relation.name == name
                for person in (bond.person, bond.other)
            ]
            assert len(set(people)) == len(people)
    with pytest.raises(InputError, match=r"relations 0\.6: give a share"):
        TwoHopTask(relations=0.6)


def test_few_facts_still_make_chains_of_both_sorts() -> None:
    shapes = set()
    for seed in range(40):
        made = TwoHopTask().facts(random.Random(seed), 4, "train")
        assert len(made) == 4
        shapes |= {type(made[first]) for first, _ in find_chains(made)}
    assert shapes == {Fact, Bond}


# -- lists --


@each_split
def test_a_list_has_all_and_only_what_the_context_says(split: str) -> None:
    shapes = set()
    for draft in drafts(ManyFactsTask(), (700, 900), split=split):
        for number, question in enumerate(draft.questions):
            evidence = evidence_of(draft, number)
            items = question.answers[0].split(", ")
            assert list(question.evidence) == sorted(question.evidence)
            asked = asked_for(split, question.text, "questions")
            by_value = [
                (name, value)
                for frame in language(split).who
                for start, end in [frame.split("{c}")]
                if question.text.startswith(start) and question.text.endswith(end)
                for name, value in asked_for(
                    split,
                    question.text[len(start) : len(question.text) - len(end)],
                    "clauses",
                )
            ]
            lists = {kind.name for kind in language(split).lists}
            if by_value:
                kind, value = by_value[0]
                wanted = {p for p, v in known_values(split, kind, draft.context) if v == value}
            else:
                ((kind, person),) = [one for one in asked if one[0] in lists]
                wanted = {v for p, v in known_values(split, kind, draft.context) if p == person}
            assert set(items) == wanted and len(items) == len(wanted) == len(evidence)
            assert 2 <= len(items) <= 5
            shapes.add((bool(by_value), len(items)))
    assert {by for by, _ in shapes} == {True, False}
    assert {size for _, size in shapes} == {2, 3, 4, 5}


def test_only_lists_that_have_company_are_asked() -> None:
    known = language("train")
    animals, home = known.lists[0], known.attributes[3]
    owls = [Fact("A", animals, value, "") for value in ("owl", "hare")]
    assert find_lists(owls) == []  # nothing else could be meant
    assert find_lists([*owls, Fact("B", animals, "owl", "")]) == [[0, 1]]
    homes = [Fact(who, home, "York", "") for who in "ABCDEF"]
    other = Fact("G", home, "Leeds", "")
    assert find_lists([*homes, other]) == []  # six are too many
    assert find_lists([*homes[:5], other]) == [[0, 1, 2, 3, 4]]


def test_lists_and_attributes_are_about_different_things() -> None:
    for seed in range(40):
        made = ManyFactsTask().facts(random.Random(seed), 40, "test")
        assert len(made) == 40
        listed = {id(VALUES[f.attribute.name]) for f in made if not f.attribute.clauses}
        single = {id(VALUES[f.attribute.name]) for f in made if f.attribute.clauses}
        assert not listed & single
        said = [(f.person, f.attribute.name) for f in made if f.attribute.clauses]
        assert len(set(said)) == len(said)


# -- open values --


def test_open_words_are_no_value_no_name_and_no_word_of_a_sentence() -> None:
    found = open_words()
    assert len(found) == len(set(found)) > 9000
    taken = {*words.FIRST_NAMES, *words.SURNAMES, *(v for vs in VALUES.values() for v in vs)}
    taken |= {word.lower() for word in taken}
    for split in SPLITS:
        known = language(split)
        for kind in (*known.attributes, *known.lists):
            for sentence in (*kind.facts, *kind.questions, *kind.clauses):
                taken |= set(re.findall(r"[a-z]+", sentence.lower()))
    assert not taken & set(found)


@pytest.mark.parametrize("kind", [FactsTask, TwoHopTask, ManyFactsTask])
def test_open_values_are_a_share_of_the_values(kind: type[Task]) -> None:
    known = {value for values in VALUES.values() for value in values}
    words_of_books = set(open_words())
    for share in (0.0, 0.5, 1.0):
        values = [
            fact.value
            for seed in range(60)
            for fact in kind(open_values=share).facts(random.Random(seed), 30, "train")  # type: ignore[call-arg, attr-defined]
            if isinstance(fact, Fact)
        ]
        others = [value for value in values if value not in known]
        expected = pytest.approx(share, abs=0.1 * (share == 0.5))
        assert len(others) / len(values) == expected
        made_up = [value for value in others if value not in words_of_books]
        assert all(split_of(value) == "train" for value in made_up)
        if share:
            assert len(made_up) / len(others) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(InputError, match="--open-values 2: give a share"):
        kind(open_values=2)  # type: ignore[call-arg]
