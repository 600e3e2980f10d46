"""L-Eval's closed-ended scoring: what an answer is read as, and what it earns, from 0 to 1.

Pure functions of texts, with the quirks of the published evaluator (L-Eval, auto_eval.py and
em.py), because only the same number can be set beside a published one.
"""

from __future__ import annotations

import re

from remamba.errors import InputError
from remamba.evals.metrics import without_articles

LETTERS = "ABCD"
NOT_ANSWERED = "None"
FILLERS = (
    "will be",
    "of the code",
    "is",
    "would be",
    "the value of",
    "the result of",
    "printed",
)
"""Taken out of a prediction on codeU, in this order."""
CODE_MARKS = (
    (",", ""),
    ("'", ""),
    ("\\", ""),
    (".0", ""),
    ("] [", "]["),
    ("[ [", "[["),
    ("] ]", "]]"),
)


def exact_match(prediction: str, answer: str) -> float:
    """1 for the answer, 0.25 for some of several right letters and no wrong one, else 0.

    Answers other than letters need to be the same number, or to occur in the first line of the
    prediction that has at least two characters, spaces and case apart.
    """
    wanted = without_articles(answer)
    if all(letter in LETTERS for letter in wanted):
        given = without_articles(prediction)
        if given == wanted:
            return 1.0
        return 0.25 if set(given) <= set(wanted) else 0.0
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
        return float(_squeezed(answer) in _squeezed(line))


def _squeezed(text: str) -> str:
    return text.lower().replace(" ", "")


def read_choice(prediction: str, *, several: bool, empty_counts: bool = False) -> str:
    """The letters that a prediction is read as.

    Args:
        several: more than one option may be right (coursera); else the first of A to D counts.
        empty_counts: read an empty prediction as no letter at all, which `exact_match` gives 0.25
            (the ReMamba authors' evaluator); L-Eval's own gives it nothing.
    """
    if not prediction.strip() and not empty_counts:
        return NOT_ANSWERED
    if prediction in LETTERS:  # also "" and "BCD", as published
        return prediction
    if not several:
        first = next((letter for letter in prediction if letter in LETTERS), None)
        if first is not None:
            return first
    opening = re.match(f"[{LETTERS}]*", prediction)[0]  # type: ignore[index]
    if len(opening) > 1:
        return _in_order(opening)
    # what follows "Question" is the model asking itself the next one
    rest = prediction[len(opening) :].split("Question")[0]
    marked = "".join(re.findall(r"[A-Z](?=[\s.)])", rest))
    found = _in_order(opening + marked)
    if not found:
        first_group = re.search(f"[{LETTERS}]+", rest)
        found = first_group[0] if first_group else ""
    return found or "A"


def gold_choice(answer: str) -> str:
    """The letters of the right options: "(B) They left." -> "B".

    Raises:
        InputError: the answer is empty.
    """
    if not answer.strip():
        raise InputError("the answer is empty; it must be one or more letters")
    return re.sub(f"[^{LETTERS}]", "", answer.split()[0]) or "A"


def _in_order(letters: str) -> str:
    return "".join(letter for letter in LETTERS if letter in letters)


def read_number(text: str) -> str:
    """The digits of the number that a solution ends with: behind "The answer is ", else the last.

    Without that phrase only the first paragraph counts. Digits behind a full stop are left out.
    """
    said = re.search(r"The answer is (\S+)", text)
    if said:
        word = said[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(map(str.isdigit, word))), "")
    return "".join(letter for letter in word.split(".")[0] if letter.isdigit())


def gold_code(answer: str) -> str:
    """The output of a program as codeU compares it: without commas, quotes and trailing zeros."""
    text = re.sub(r"\s+", " ", answer)
    for mark, replacement in CODE_MARKS:
        text = text.replace(mark, replacement)
    return text


def read_code(prediction: str, answer: str) -> str:
    """The words of a prediction on codeU that count: the last ones, three more than the answer's.

    Behind "the final output", where it is said, the first ones count.
    """
    text = gold_code(prediction)
    for filler in FILLERS:
        text = text.replace(filler, "")
    size = len(answer.split()) + 3
    if "the final output" in text:
        words = re.split(r"\s+", text.split("the final output")[-1])[:size]
    else:
        words = re.split(r"\s+", text)[-size:]
    return " ".join(words)


def gold_judgement(answer: str) -> tuple[str, str]:
    """What is true by the story and by the real world: "True [fact: False]" -> (true, false).

    Raises:
        InputError: the second part is missing.
    """
    parts = answer.lower().split("[fact:")
    if len(parts) < 2:
        raise InputError(f"{answer[:40]!r} lacks '[fact: ...]', the answer by the real world")
    return parts[0].strip(), parts[1][:-1].strip()


def read_judgement(prediction: str) -> tuple[str, str]:
    """As `gold_judgement`, each part read as its first word with true or false in it."""
    loyalty, fact = gold_judgement(prediction)
    return _verdict(loyalty), _verdict(fact)


def _verdict(text: str) -> str:
    for word in text.split():
        for verdict in ("true", "false"):
            if verdict in word:
                return verdict
    return "<error>"
