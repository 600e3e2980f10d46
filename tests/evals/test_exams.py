"""L-Eval's scoring on cases made by hand from its definitions."""

from __future__ import annotations

import pytest

from remamba.errors import InputError
from remamba.evals import exams
from remamba.evals.leval import best_constant, score_answer


@pytest.mark.parametrize(
    ("dataset", "prediction", "answer", "expected"),
    [
        # one right option: the first of A to D anywhere
        ("tpo", "B", "B", 1.0),
        ("tpo", " B. because", "B", 1.0),
        ("tpo", "I think B", "B", 1.0),
        ("tpo", "Answer: B", "B", 0.0),  # the A of "Answer"
        ("tpo", "b", "B", 0.0),  # no letter, read as A
        ("tpo", "42", "A", 1.0),  # the same fallback where A is right
        ("tpo", "", "A", 0.0),  # empty is not answered, no fallback
        ("tpo", "  \n", "A", 0.0),
        ("quality", "B", "(B) They left.", 1.0),
        ("quality", "(B) They left.", "(B) They left.", 1.0),
        ("quality", "They left.", "(A) They left.", 1.0),
        ("quality", "BC", "(B) They left.", 0.0),  # a piece of ABCD is taken whole
        ("quality", "CA", "(C) They left.", 1.0),
        # several right options
        ("coursera", "BD", "BD", 1.0),
        ("coursera", "DB", "BD", 1.0),
        ("coursera", "DDB", "BD", 1.0),
        ("coursera", "B", "BD", 0.25),  # some of them, and no wrong one
        ("coursera", "AB", "BD", 0.0),
        ("coursera", "ABCD", "BD", 0.0),
        ("coursera", "B, D.", "BD", 1.0),  # a letter at the very start counts
        ("coursera", " B, D.", "BD", 0.25),  # elsewhere only before a space, stop or bracket
        ("coursera", "B. D.", "BD", 1.0),
        ("coursera", "The options B) and D) fit", "BD", 1.0),
        ("coursera", "B Question 2 D.", "BD", 0.25),  # what follows "Question" is not read
        ("coursera", "answer:DB", "BD", 0.25),  # the first group of letters, in its own order
        ("coursera", "nothing", "A", 1.0),
        ("coursera", "nothing", "AB", 0.25),
        ("coursera", "", "AB", 0.0),
        # a number
        ("gsm100", "The answer is 18", "The answer is 18", 1.0),
        ("gsm100", "So 9 + 9. The answer is $18.", "The answer is 18", 1.0),
        ("gsm100", "The answer is 18.50", "The answer is 18", 1.0),
        ("gsm100", "The answer is 1,800", "The answer is 1800", 1.0),
        ("gsm100", "She has 3 and then 18 apples", "The answer is 18", 1.0),
        ("gsm100", "She has 18\n\nQuestion: 5 more", "The answer is 18", 1.0),
        ("gsm100", "The answer is eighteen", "The answer is 18", 0.0),
        ("gsm100", "The answer is -18", "The answer is 18", 1.0),  # the sign is not read
        ("gsm100", "", "The answer is 18", 0.0),
        ("gsm100", "The answer is 018", "The answer is 18", 1.0),  # numbers, not texts
        # the output of a program
        ("codeU", "The final result is [1, 2]", "[1, 2]", 1.0),
        ("codeU", "[ [1 2] [3 4] ]", "[[1, 2], [3, 4]]", 1.0),
        ("codeU", "the final output is 7.0 as shown before in detail", "7", 1.0),
        ("codeU", "7 is what one gets for it all in the end", "7", 0.0),  # only the last four words
        ("codeU", "'abc'", "abc", 1.0),
        ("codeU", "", "7", 0.0),
        # by the story, and by the world
        ("sci_fi", "True [fact: False]", "True [fact: False]", 1.0),
        ("sci_fi", "True [fact: True]", "True [fact: False]", 0.5),
        ("sci_fi", "False. [fact: It is false.]", "True [fact: False]", 0.5),
        ("sci_fi", "It is untrue [fact: ]", "True [fact: False]", 0.5),  # "untrue" has true in it
        ("sci_fi", " [fact: ]", "True [fact: False]", 0.0),
        ("sci_fi", "false or true [fact: false]", "False [fact: False]", 1.0),
        ("sci_fi", "I do not know [fact: maybe]", "True [fact: True]", 0.0),
    ],
)
def test_score_answer(dataset: str, prediction: str, answer: str, expected: float) -> None:
    assert score_answer(dataset, prediction, answer, "official") == expected


@pytest.mark.parametrize(
    ("dataset", "prediction", "answer", "expected"),
    [
        ("coursera", "", "BD", 0.25),
        ("tpo", "", "B", 0.25),
        ("tpo", "  ", "B", 0.0),  # spaces are read as A
        ("tpo", "  ", "A", 1.0),
        ("tpo", "B", "B", 1.0),
        ("gsm100", "", "The answer is 18", 0.0),
    ],
)
def test_authors_scoring(dataset: str, prediction: str, answer: str, expected: float) -> None:
    assert score_answer(dataset, prediction, answer, "authors") == expected


def test_sci_fi_needs_both_parts() -> None:
    with pytest.raises(InputError, match=r"lacks '\[fact"):
        score_answer("sci_fi", "True", "True [fact: False]", "official")


def test_exact_match_reads_the_first_line_of_two_characters() -> None:
    assert exams.exact_match("x\nno\nyes", "yes") == 0.0
    assert exams.exact_match("x\nYES it is", "y es") == 1.0


def test_best_constant() -> None:
    answers = [["(A) x"], ["(B) y"], ["(B) z"], ["(C) w"]]
    assert best_constant("quality", answers, "official") == ("B", 50.0)
    # an empty answer to all earns 25, an A 62.5
    assert best_constant("coursera", [["A"], ["ABD"]], "official") == ("A", 62.5)
    assert best_constant("tpo", [["A"], ["B"], ["C"], ["D"], ["D"]], "authors") == ("D", 40.0)
    worlds = [["True [fact: False]"], ["True [fact: True]"]]
    assert best_constant("sci_fi", worlds, "official") == ("True [fact: True]", 75.0)
    assert best_constant("gsm100", [["The answer is 5"], ["so 5"]], "official") == ("5", 100.0)
