"""What the documents name exists, and their lines can be read beside code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAPER = ROOT / "docs" / "PAPER.md"
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"

CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
WRITTEN = sorted(
    file
    for pattern in ("*.md", "docs/*.md", "lab/*.md", "lab/models/*/*.md", "remamba/assets/*/*.md")
    for file in ROOT.glob(pattern)
)
"""Documents written by hand; the reports in docs/evidence/ are written by a command."""
PATH = re.compile(r"^[\w.-]+(/[\w.*-]+)*/?$")
REFERENCE = re.compile(r"`([\w./]+\.py):([\w.]+)`")
TOP = {".ci", "docs", "examples", "lab", "recipes", "remamba", "tests"}

EXAMPLES = {"file.py", "common.py", "helpers.py", "utils.py"}
"""No paths: a stand-in for any name, and names that no file may have."""


def spans(document: Path) -> list[str]:
    """Inline code of a document, fenced blocks left out."""
    return CODE.findall(FENCE.sub("", document.read_text(encoding="utf-8")))


def named_paths(document: Path) -> list[str]:
    """Inline code that names a path of this repository.

    A path counts when it starts at one of our folders, or is a Python file (named from remamba/
    too). Other bare names, such as `scores.json`, are files that commands write.
    """
    found = set()
    for span in spans(document):
        path = span.split(":")[0]
        inside = "/" in path and path.split("/")[0] in TOP
        if PATH.match(path) and (inside or path.endswith(".py")) and path not in EXAMPLES:
            found.add(path)
    return sorted(found)


def exists(path: str) -> bool:
    """True when the path, or a file of its pattern, lies in the repository or in remamba/."""
    return any(any(base.glob(path.rstrip("/"))) for base in (ROOT, ROOT / "remamba"))


def resolve(reference: str) -> Path:
    """`ops/ssd_scan/op.py` or `remamba/ops/ssd_scan/op.py` or `tests/test_x.py` -> the file."""
    for base in (ROOT, ROOT / "remamba"):
        if (base / reference).is_file():
            return base / reference
    raise AssertionError(f"{reference} is neither in the repository nor in remamba/")


def definitions(tree: ast.AST, prefix: str = "") -> set[str]:
    """Names a file defines: functions, classes, methods as `Class.method`, constants."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                names |= definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            names |= {prefix + t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(prefix + node.target.id)
    return names


@pytest.mark.parametrize(
    "document", [README, PAPER, ARCHITECTURE, CONTRIBUTING], ids=lambda path: path.name
)
def test_named_paths_exist(document: Path) -> None:
    missing = [path for path in named_paths(document) if not exists(path)]
    assert not missing, f"{document.name} names paths that do not exist: {missing}"


@pytest.mark.parametrize("document", [PAPER, ARCHITECTURE], ids=lambda path: path.name)
def test_references_resolve(document: Path) -> None:
    references = REFERENCE.findall(document.read_text(encoding="utf-8"))
    assert references, f"{document.name} names functions as `file.py:name`"
    wrong = []
    for file, name in references:
        known = definitions(ast.parse(resolve(file).read_text(encoding="utf-8")))
        if name not in known:
            wrong.append(f"{file}:{name}")
    assert not wrong, f"{document.name} names what is not defined: {wrong}"


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short(document: Path) -> None:
    """At most 200 characters, except in tables."""
    lines = document.read_text(encoding="utf-8").splitlines()
    long = [
        number
        for number, line in enumerate(lines, 1)
        if len(line) > 200 and not line.lstrip().startswith("|")
    ]
    assert not long, f"{document.name}: rewrap the lines {long}"
