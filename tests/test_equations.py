"""Equations of the paper are cited by the numbers that they have in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OF_THE_PAPER = {
    "3": "score|Query|cosine|selection",
    "4": "top|kept|selection",
    "5": "Value|vector|selection",
    "6": "splice|sequence|embeddings|place",
    "7": "splice|sequence|embeddings|place",
    "8": "adaption|alpha|step|Delta|dt|ReLU",
}
"""arXiv 2408.15496: number -> words of which one stands where it is cited. 1 and 2 are Mamba's own
scan; (3) scores by cosines of Query and Key, (4) the K best positions, (5) Value of their states,
(6) and (7) these vectors in the span's place, (8) the scores in the time step."""
CITED = re.compile(r"(?<!2312\.00752, )(?<!2405\.21060, )Eqs?\. (\d)(?:-(\d))?")
FILES = [*(ROOT / "remamba").rglob("*.py"), *(ROOT / "lab").rglob("*.py"), ROOT / "docs/PAPER.md"]


def citations() -> list[tuple[str, str, str]]:
    """File, number, and the line with its neighbours."""
    found = []
    for file in sorted(FILES):
        lines = file.read_text(encoding="utf-8").splitlines()
        for i, line in enumerate(lines):
            for first, last in CITED.findall(line):
                numbers = range(int(first), int(last or first) + 1)
                around = " ".join(lines[max(i - 1, 0) : i + 2])
                found += [(str(file.relative_to(ROOT)), str(n), around) for n in numbers]
    return found


def test_each_citation_is_of_what_stands_there() -> None:
    found = citations()
    assert {number for _, number, _ in found} >= set(OF_THE_PAPER)
    for file, number, around in found:
        if number in OF_THE_PAPER:
            assert re.search(OF_THE_PAPER[number], around), f"{file}: Eq. {number}: {around}"


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("cosine scores", "Eq. 3"), ("top-K", "Eq. 4"), ("Value(h_i)", "Eq. 5"),
        ("in the span's place", "Eq. 6-7"), ("delta = alpha delta + Theta", "Eq. 8"),
    ],
)  # fmt: skip
def test_the_table_of_the_paper(what: str, number: str) -> None:
    lines = (ROOT / "docs/PAPER.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("| Eq.") and what in line]
    assert row.split("|")[1].strip() == number


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("which K positions are kept", "(4)"), ("the vectors in their place", "(5)"),
        ("stage 2's sequence", "(6, 7)"), ("enter the time step", "(8)"), ("cos(Key", "(3)"),
    ],
)  # fmt: skip
def test_the_reference(words: str, number: str) -> None:
    text = (ROOT / "remamba/methods/reference.py").read_text(encoding="utf-8")
    (line,) = [x for x in text.splitlines() if words in x and x.strip().startswith("#")]
    assert number in line[line.index(words) :]
