"""Commands, benchmarks and models that another installed package brings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from dataclasses import dataclass
from pathlib import Path

from remamba.evals.tasks import TASKS

COMMANDS = {"greet": ("guest", "says hello"), "eval greet": ("guest", "says hello, too")}
TASK = TASKS["leval"]._replace(name="guesswork")
MODELS = Path(__file__).parent / "models"


@dataclass
class Args:
    \"\"\"Says hello.\"\"\"


def run(args: Args) -> None:
    print("hello")
"""
POINTS = {"commands": "COMMANDS", "tasks": "TASK", "models": "MODELS"}


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A folder that holds an installed package, as pip lays it out."""
    (tmp_path / "guest.py").write_text(MODULE)
    info = tmp_path / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    points = (f"[remamba.{kind}]\nguest = guest:{name}\n" for kind, name in POINTS.items())
    (info / "entry_points.txt").write_text("\n".join(points))
    model = tmp_path / "models" / "guest-model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "remamba"}))
    return tmp_path


def run(guest: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    places = [str(guest), *sys.path]
    return subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )


def test_a_package_brings_commands(guest: Path) -> None:
    said = run(guest, "-m", "remamba", "--help").stdout
    assert "greet" in said
    assert "says hello, too" in said
    for words in (["greet"], ["eval", "greet"]):
        assert run(guest, "-m", "remamba", *words).stdout == "hello\n"


def test_a_package_brings_benchmarks_and_models(guest: Path) -> None:
    code = (
        "from remamba.evals.tasks import find_task; from remamba.pretrained import locate;"
        "print(find_task('guesswork').name, locate('guest-model'))"
    )
    assert run(guest, "-c", code).stdout.split() == [
        "guesswork",
        str(guest / "models" / "guest-model"),
    ]


def test_a_package_that_cannot_be_imported_is_named(guest: Path) -> None:
    (guest / "guest.py").write_text("import no_such_module")
    done = run(guest, "-m", "remamba", "greet")
    assert done.returncode == 2
    assert "the package guest brings commands that cannot be imported" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run(guest, "-m", "remamba", "--version").returncode == 0
