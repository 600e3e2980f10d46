"""Imports go one way, in the library and in the laboratory; what is heavy is imported late."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    ("errors",),
    ("files", "provenance", "plugins", "json_lines", "options", "fields"),
    ("compression_config", "ops"),
    ("configuration_remamba",),
    ("model",),
    ("execution", "quantised"),
    ("pretrained",),
    ("text",),
    ("methods",),
    ("bare_model", "sizes"),
    ("generation", "modeling_base", "trunk"),
    ("modeling_remamba",),
    ("auto_classes", "checkpoints"),
    ("engine",),
    ("__init__",),
    ("train", "evals", "serve"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Rooms of the library, lowest first. A module imports from lower layers, or from its own room."""

LAB_LAYERS = (
    ("planted", "mixture", "bench", "models"),
    ("asked",),
    ("evidence", "paper"),
    ("commands",),
    ("__init__",),
)
"""Rooms of the laboratory, which may import all of the library."""

HEAVY = {"triton", "datasets", "matplotlib", "fastapi", "peft", "accelerate"}
NAMED = re.compile(r"(remamba|lab)((?:\.\w+)+)(?::\w+)?")
"""A string that names a module, as `importlib` and the tables of commands and ops take it."""


def python_files(package: str) -> list[Path]:
    return sorted(file for file in (ROOT / package).rglob("*.py") if "assets" not in file.parts)


FILES = python_files("remamba")
LAB_FILES = python_files("lab")
EVERY = [*FILES, *LAB_FILES]


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def module_path(file: Path) -> tuple[str, ...]:
    """remamba/ops/norm/op.py -> ("remamba", "ops", "norm", "op")."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room(path: tuple[str, ...]) -> str:
    """`("remamba", "ops", "norm")` -> `"ops"`; a package itself is `"__init__"`."""
    return path[1] if len(path) > 1 else "__init__"


def is_module(path: tuple[str, ...]) -> bool:
    place = ROOT.joinpath(*path)
    return place.is_dir() or place.with_suffix(".py").is_file()


def runtime_nodes(tree: ast.AST, *, lazy: bool = True) -> Iterator[ast.AST]:
    """Nodes that run: `if TYPE_CHECKING:` bodies are left out, function bodies too if not lazy."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from runtime_nodes(other, lazy=lazy)
            continue
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from runtime_nodes(node, lazy=lazy)


def imported(file: Path, *, lazy: bool = True) -> Iterator[tuple[str, ...]]:
    """Absolute dotted names that a file imports, or names in a string where lazy, as tuples.

    Relative imports are resolved.
    """
    here = module_path(file)
    parent = here if file.name == "__init__.py" else here[:-1]
    for node in runtime_nodes(ast.parse(file.read_text(encoding="utf-8")), lazy=lazy):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                name = (*base, alias.name)
                inside = base[:1] in (("remamba",), ("lab",))
                yield name if inside and is_module(name) else base
        elif lazy and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = NAMED.fullmatch(node.value)
            if found and is_module(name := (found[1], *found[2][1:].split("."))):
                yield name


def layer_of(name: str, layers: tuple[tuple[str, ...], ...] = LAYERS) -> int:
    for rank, names in enumerate(layers):
        if name in names:
            return rank
    raise AssertionError(f"the room {name} has no place in LAYERS: decide on its layer")


@pytest.mark.parametrize("file", EVERY, ids=named)
def test_imports_go_down(file: Path) -> None:
    here = module_path(file)
    package, own = here[0], room(here)
    layers = LAYERS if package == "remamba" else LAB_LAYERS
    rank = layer_of(own, layers)
    for name in imported(file):
        assert package == "lab" or name[0] != "lab", f"{named(file)} names the laboratory: {name}"
        if name[0] != package or room(name) == own:
            continue
        assert layer_of(room(name), layers) < rank, (
            f"{named(file)} (layer {own}) imports {'.'.join(name)} (layer {room(name)})"
        )


def test_the_library_does_not_know_the_laboratory_by_name() -> None:
    """No import of it, no string that names a module of it, no entry point in the wheel."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["remamba"]' in project
    assert "entry-points" not in project


@pytest.mark.parametrize("package", ["remamba", "lab"])
def test_there_are_no_circles(package: str) -> None:
    """Also where an import stands inside a function, or a module is named in a string.

    Two tables name what they load on use and are asked by it: an op asks the backend which form
    runs, and a method is a class of the file that lists all methods. Their strings are left out.
    """
    files = python_files(package)
    graph = {module_path(file): set(imported(file)) for file in files}
    for table in (("remamba", "ops", "backend"), ("remamba", "methods", "base")):
        graph.pop(table, None)
    done: set[tuple[str, ...]] = set()

    def visit(node: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert node not in trail, f"import cycle: {trail[trail.index(node) :]} -> {node}"
        if node in done or node not in graph:
            return
        for other in graph[node] - {node}:
            visit(other, (*trail, node))
        done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("file", FILES, ids=named)
def test_heavy_packages_are_imported_late(file: Path) -> None:
    if file.stem.startswith("triton"):
        pytest.skip("kernel files are themselves imported late")
    if room(module_path(file)) in ("train", "evals", "serve"):
        pytest.skip("imported by their own commands only")
    early = {name[0] for name in imported(file, lazy=False)} & HEAVY
    assert not early, f"{named(file)} imports {early} at module level"


def test_no_drawer_files() -> None:
    names = {file.stem for file in EVERY}
    assert not names & {"utils", "common", "helpers"}


def test_public_names_are_light() -> None:
    """Nothing heavy is imported by our own code, nor drawn in by what we import.

    transformers itself imports some of them where they are installed: that is not counted.
    """
    program = """
import builtins, sys
heavy = set(sys.argv[1].split(","))
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
before = set(sys.modules)
asked, plain = [], builtins.__import__
def watched(name, globals=None, *rest, **options):
    importer = (globals or {}).get("__name__", "")
    if name.split(".")[0] in heavy and importer.split(".")[0] == "remamba":
        asked.append(f"{importer} -> {name}")
    return plain(name, globals, *rest, **options)
builtins.__import__ = watched
import remamba
for name in remamba.__all__:
    getattr(remamba, name)
drawn = {name.split(".")[0] for name in set(sys.modules) - before} & heavy
drawn -= {name.split(".")[0] for name in before}
assert not asked, asked
assert not drawn, drawn
"""
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(sorted(HEAVY))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
