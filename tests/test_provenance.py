"""The commit is that of the package's own checkout and of no other; "-dirty" is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import remamba
from remamba import provenance

PACKAGE = Path(remamba.__file__).parent
TELL = "from remamba.provenance import commit; print(commit())"


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def repository(folder: Path) -> str:
    """A new repository with one commit; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def copy_package(folder: Path) -> Path:
    """`folder` with a package remamba in it that has little but provenance.py; returns `folder`."""
    place = folder / "remamba"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "norm.py").write_text("EPSILON = 1e-5\n")
    shutil.copy(PACKAGE / "provenance.py", place)
    return folder


def told(folder: Path, **changes: str) -> str:
    """What the package in `folder` says its commit is, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **changes}
    done = subprocess.run(
        [sys.executable, "-B", "-c", TELL],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_the_whole_package_below_a_foreign_repository(tmp_path: Path) -> None:
    repository(tmp_path / "mine")
    site = tmp_path / "mine" / ".venv" / "site"
    shutil.copytree(
        PACKAGE, site / "remamba", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    assert told(site) == "None"


def test_a_copy_in_a_foreign_repository(tmp_path: Path) -> None:
    """Untracked at the top, or tracked deeper down: the commit is not of this package."""
    mine = tmp_path / "mine"
    repository(mine)
    copy_package(mine)
    assert told(mine) == "None"
    other = copy_package(tmp_path / "other" / "vendored")
    repository(tmp_path / "other")
    assert told(other) == "None"


def test_a_checkout(tmp_path: Path) -> None:
    """A clean one, one with a file that git does not know, and each way to be dirty."""
    checkout = copy_package(tmp_path / "checkout")
    name = repository(checkout)
    assert told(checkout) == name
    (checkout / "notes.txt").write_text("mine")
    assert told(checkout) == name
    with (checkout / "remamba" / "norm.py").open("a") as file:
        file.write("# changed\n")
    assert told(checkout) == f"{name}-dirty"
    git(checkout, "add", "remamba/norm.py")
    assert told(checkout) == f"{name}-dirty"
    git(checkout, "reset", "-q", "--hard")
    assert told(checkout) == name
    (checkout / "remamba" / "norm.py").unlink()
    assert told(checkout) == f"{name}-dirty"


def test_a_work_tree_and_a_link(tmp_path: Path) -> None:
    """A second work tree of a repository, and a link to it from elsewhere, are the checkout."""
    name = repository(copy_package(tmp_path / "first"))
    git(tmp_path / "first", "worktree", "add", "-q", "--detach", str(tmp_path / "second"))
    assert told(tmp_path / "second") == name
    repository(tmp_path / "mine")
    (tmp_path / "mine" / "remamba").symlink_to(tmp_path / "second" / "remamba")
    assert told(tmp_path / "mine") == name


def test_the_environment_names_another_repository(tmp_path: Path) -> None:
    """As it does inside a git hook."""
    name = repository(copy_package(tmp_path / "checkout"))
    assert repository(tmp_path / "mine") != name
    changes = {"GIT_DIR": str(tmp_path / "mine" / ".git"), "GIT_WORK_TREE": str(tmp_path / "mine")}
    assert told(tmp_path / "checkout", **changes) == name
    assert told(copy_package(tmp_path / "plain"), **changes) == "None"


def test_no_commit_yet(tmp_path: Path) -> None:
    checkout = copy_package(tmp_path / "checkout")
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    assert told(checkout) == "None"


def test_git_is_not_installed(tmp_path: Path) -> None:
    checkout = copy_package(tmp_path / "checkout")
    repository(checkout)
    assert told(checkout, PATH="") == "None"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_a_checkout_of_another_user(tmp_path: Path) -> None:
    checkout = copy_package(tmp_path / "checkout")
    repository(checkout)
    for place in (checkout, *checkout.rglob("*")):
        os.chown(place, 12345, 12345)
    empty = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    assert told(checkout, **empty) == "None"


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Not even the index, which another git may be writing."""
    checkout = copy_package(tmp_path / "checkout")
    repository(checkout)
    os.utime(checkout / "remamba" / "norm.py", (1, 1))  # `git status` would note this
    before = (checkout / ".git" / "index").read_bytes()
    assert not told(checkout).endswith("-dirty")
    assert (checkout / ".git" / "index").read_bytes() == before


def test_versions() -> None:
    found = provenance.versions("pyarrow", "no-such-package")
    assert found["torch"] == torch.__version__
    assert found["no-such-package"] is None
    assert next(iter(found)) == "python"
    assert None not in provenance.versions().values()


def test_device_name() -> None:
    assert provenance.device_name(torch.device("cpu")) == "cpu"
    assert provenance.device_name(torch.device("meta")) == "meta"


def test_light() -> None:
    program = f"""
import runpy, sys
runpy.run_path({str(PACKAGE / "provenance.py")!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", ['"git"', "metadata.version(", "get_device_name("])
def test_there_is_one_answer(words: str) -> None:
    files = [file.name for file in PACKAGE.rglob("*.py") if words in file.read_text("utf-8")]
    assert files == ["provenance.py"]
