"""What is asked for before any work costs little: `import remamba`, `--help`, a slip of the pen."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import remamba
from remamba import cli

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "tokenizers", "triton", "peft", "datasets", "matplotlib"}
ATTEMPTS = 5
"""The least of so many counts: another program on the machine slows this one down."""
WORK = (
    "import argparse, asyncio, concurrent.futures, decimal, email.message, http.client, inspect, "
    "importlib.metadata, logging.config, multiprocessing, unittest.mock, xml.dom.minidom"
)
WORK_SECONDS = 0.11
"""What WORK takes on a machine on which the bounds below hold as they stand; on a slower one, or
in a slower hour, they grow with it."""
GROUPS = ["data", "data build", "bench"]
HELP = [
    *(["--version"], ["--help"], []),
    *([*name.split(), "--help"] for name in (*GROUPS, *cli.commands())),
]
SLIPS = [
    *(["convret"], ["data", "biuld"], ["eval", "tabel"], ["data"]),
    *(["ask", "--documnt", "x"], ["train", "--nosuch"], ["read"]),
]


class Ran(NamedTuple):
    """One run of Python."""

    code: int
    out: str
    err: str
    modules: set[str]
    seconds: float
    """Of CPU, user's and system's."""


def python(*words: str) -> Ran:
    """Runs Python from the checkout's root, and notes every module that was imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    modules, said = set(), []
    for line in done.stderr.splitlines(keepends=True):
        if line.startswith("import time:"):
            modules.add(line.rpartition("|")[2].strip())
        else:
            said.append(line)
    return Ran(done.returncode, done.stdout, "".join(said), modules, seconds)


def slowness() -> float:
    """How many times as long as it should this machine takes for the same work now, at least 1."""
    return max(1.0, python("-c", WORK).seconds / WORK_SECONDS)


def heavy(ran: Ran) -> set[str]:
    return {name.partition(".")[0] for name in ran.modules} & HEAVY


@pytest.mark.parametrize("argv", HELP + SLIPS, ids=lambda argv: " ".join(argv) or "nothing")
def test_the_command_starts_fast(argv: list[str]) -> None:
    for _ in range(ATTEMPTS):
        ran = python("-m", "remamba", *argv)
        assert ran.code == (2 if argv in SLIPS else 0), ran.err
        assert "remamba.cli" in ran.modules
        assert not heavy(ran)
        if ran.seconds < 0.4 or ran.seconds < 0.4 * slowness():
            return
    raise AssertionError(f"remamba {' '.join(argv)}: {ran.seconds:.2f} s of CPU")


def test_import_is_light() -> None:
    for _ in range(ATTEMPTS):
        ran = python("-c", "import remamba")
        assert "remamba" in ran.modules
        assert not heavy(ran)
        seconds = ran.seconds - python("-c", "pass").seconds
        if seconds < 0.1 or seconds < 0.1 * slowness():
            return
    raise AssertionError(f"import remamba: {ran.seconds:.2f} s of CPU")


UNNEEDED = {
    "torch._dynamo",
    "sympy",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
}
"""What takes longer to import than torch, and answers nothing."""


def test_an_answer_needs_none_of_what_takes_long(tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_text("Anna Berg was born in Oslo. Say Oslo when anyone asks.")
    words = ["ask", "--document", str(document), "--question", "Where was Anna Berg born?"]
    ran = python("-m", "remamba", *words, "--device", "cpu")
    assert ran.code == 0 and "time " in ran.out
    assert not ran.modules & UNNEEDED


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_spin_little_where_nobody_says_how(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards, whatever is set here
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_errors_and_settings_need_no_torch() -> None:
    ran = python("-c", "from remamba import CompressionConfig, InputError; CompressionConfig()")
    assert ran.code == 0 and not heavy(ran)


def test_python_m_remamba_is_remamba() -> None:
    ran = python("-m", "remamba", "convert")
    assert ran.code == 2
    assert ran.err == "remamba: missing: SRC, DST; see remamba convert --help\n"
    assert python("-m", "remamba", "--help").out == cli.help_text() + "\n"


@pytest.mark.parametrize("what", ["*", ", ".join(remamba.__all__)])
def test_public_names(what: str) -> None:
    program = f"from remamba import {what}\nimport remamba\nassert StateCache is remamba.StateCache"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_agree() -> None:
    """__all__, the modules they come from, and what a type checker is shown."""
    shown: dict[str, str] = {}
    for node in ast.walk(ast.parse(Path(remamba.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom) and line.module is not None
                shown |= {alias.name: line.module.partition(".")[2] for alias in line.names}
    assert shown == remamba._HOMES
    assert sorted(remamba.__all__) == sorted(shown)
    for name, home in shown.items():
        assert getattr(remamba, name).__module__ == f"remamba.{home}"


def test_dir_lists_the_public_names() -> None:
    ran = python("-c", "import remamba; print(*dir(remamba))")
    assert set(remamba.__all__) | {"__version__", "__all__"} <= set(ran.out.split())
    assert not heavy(ran)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'remamba' has no attribute 'Nosuch'"):
        remamba.Nosuch  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nosuch'"):
        from remamba import Nosuch  # type: ignore[attr-defined]  # noqa: F401
    assert not hasattr(remamba, "__nosuch__")
