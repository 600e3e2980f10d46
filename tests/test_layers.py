"""Imports inside the package go one way, and what is heavy is imported late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "remamba"

LAYERS = (
    ("errors", "graphs", "watch"),
    ("files", "provenance", "plugins"),
    ("ops", "compression_config"),
    ("configuration_remamba",),
    ("norm", "projection", "batch", "layouts", "pretrained", "selection", "sampling"),
    ("text", "selection_page", "json_lines"),
    ("cache",),
    ("generation",),
    ("adaption",),
    ("compression",),
    ("mixer",),
    ("mixer2",),
    ("backbone",),
    ("decode",),
    ("prefill",),
    ("stages",),
    ("losses",),
    ("modeling_remamba",),
    ("auto_classes",),
    ("checkpoint",),
    ("request", "slots"),
    ("engine",),
    ("__init__",),
    ("train", "evals", "serve", "bench"),
    ("planted",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Lowest first. A module imports from lower layers, or from its own room, never from beside."""

HEAVY = {"triton", "datasets", "matplotlib", "fastapi", "peft", "accelerate"}

FILES = sorted(
    file for file in PACKAGE.rglob("*.py") if "assets" not in file.relative_to(PACKAGE).parts
)


def room(path: tuple[str, ...]) -> str:
    """`("ops", "ssd")` -> `"ops"`; the package itself is `"__init__"`."""
    return path[0] if path else "__init__"


def module_path(file: Path) -> tuple[str, ...]:
    """Module path inside the package: remamba/ops/ssd_scan/op.py -> ("ops", "ssd")."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(path: tuple[str, ...]) -> bool:
    place = PACKAGE.joinpath(*path)
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
    """Absolute dotted names that a file imports, as tuples; relative imports are resolved."""
    here = ("remamba", *module_path(file))
    parent = here if file.name == "__init__.py" else here[:-1]
    for node in runtime_nodes(ast.parse(file.read_text(encoding="utf-8")), lazy=lazy):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                name = (*base, alias.name)
                inside = base[:1] == ("remamba",)
                yield name if inside and is_module(name[1:]) else base


def layer_of(name: str) -> int:
    for rank, names in enumerate(LAYERS):
        if name in names:
            return rank
    raise AssertionError(f"remamba/{name} has no place in LAYERS: decide on its layer")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    own = room(module_path(file))
    rank = layer_of(own)
    for name in imported(file):
        if name[0] != "remamba" or room(name[1:]) == own:
            continue
        target = room(name[1:])
        assert layer_of(target) < rank, (
            f"{file.relative_to(ROOT)} (layer {own}) imports {'.'.join(name)} (layer {target})"
        )


@pytest.mark.parametrize("name", ["ops", "train", "evals", "serve", "bench", "planted", "commands"])
def test_rooms_have_no_cycles(name: str) -> None:
    files = [file for file in FILES if room(module_path(file)) == name]
    graph = {
        module_path(file): {other[1:] for other in imported(file, lazy=False)} for file in files
    }
    done: set[tuple[str, ...]] = set()

    def visit(node: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert node not in trail, f"import cycle: {trail} -> {node}"
        if node in done or node not in graph:
            return
        for other in graph[node]:
            visit(other, (*trail, node))
        done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heavy_packages_are_imported_late(file: Path) -> None:
    if file.stem.endswith("_triton"):
        pytest.skip("kernel files are themselves imported late")
    if room(module_path(file)) in ("train", "evals", "serve"):
        pytest.skip("imported by their own commands only")
    early = {name[0] for name in imported(file, lazy=False)} & HEAVY
    assert not early, f"{file.relative_to(ROOT)} imports {early} at module level"


def test_no_drawer_files() -> None:
    names = {file.stem for file in FILES}
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
