"""docs/ECOSYSTEM.md: every row says whether its way in works, and names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "ECOSYSTEM.md"
TEST = re.compile(r"`([\w/]+\.py)::([\w.]+)`")


HEADING = "| library | way in | what happens | test |\n"


def rows() -> list[list[str]]:
    """The cells of each row of the tables of ways in, their two lines of heading left out."""
    tables = [part.split("\n\n")[0] for part in TABLE.read_text("utf-8").split(HEADING)[1:]]
    lines = [line for table in tables for line in table.splitlines()[1:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def defined(file: Path) -> set[str]:
    """The tests of a file, and its classes of tests."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            inside = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            found |= {node.name, *(f"{node.name}.{n}" for n in inside if n.startswith("test_"))}
    return found


def test_there_are_rows() -> None:
    assert len(rows()) > 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(row[:2]))
def test_a_row_is_whole_and_its_tests_exist(row: list[str]) -> None:
    assert len(row) == 4, "library, way in, what happens, test"
    library, way, outcome, test = row
    assert library and way
    assert re.match(r"(works|refused: .)", outcome), outcome
    named = TEST.findall(test)
    assert named, f"{test!r} names no `file.py::test`"
    for file, name in named:
        assert name in defined(HERE / file), f"tests/ecosystem/{file} has no {name}"
