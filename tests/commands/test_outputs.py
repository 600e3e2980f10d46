"""Where output cannot go, standard output too: one line, before the work where that can be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import remamba
from remamba import cli

ROOT = Path(__file__).parents[2]
PACKAGE = Path(remamba.__file__).parent


def remamba_(*words: object, out: str) -> tuple[int, str]:
    """Exit code and stderr of a command line whose standard output goes to `out` by the shell."""
    program = "import sys; from remamba.cli import main; sys.exit(main())"
    shown = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {out}', "-", sys.executable, "-c", program]
        + [str(word) for word in words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return shown.returncode, shown.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("read", "--help"),
        ("generate", "--prompt", "One wolf", "--max-new-tokens", "2"),
        ("generate", "--prompt", "One wolf", "--max-new-tokens", "2", "--json"),
    ],
    ids=" ".join,
)
def test_standard_output_on_a_full_disk(words: tuple[str, ...]) -> None:
    code, said = remamba_(*words, out="> /dev/full")
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("remamba: standard output cannot be written: the disk is full")
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("lines", [2, 1_000_000], ids=["little", "more than a pipe holds"])
def test_a_reader_that_leaves(lines: int) -> None:
    """`remamba ... | head -1` ends without a word."""
    program = f"""
import sys, types
from remamba import cli
probe = types.ModuleType("probe")
exec("import dataclasses\\n@dataclasses.dataclass\\nclass Args:\\n    'x'\\n", probe.__dict__)
probe.run = lambda args: print("line\\n" * {lines})
sys.modules["probe"] = probe
cli.COMMANDS["probe"] = ("probe", "x")
sys.exit(cli.main(["probe"]))
"""
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "-", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "line\n"
    assert not done.stderr


def test_read_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.txt"
    document.write_text("The wolf lived in Oslo. Anna signed the contract in May.")
    code, said = remamba_("read", document, "--output", small_disk / "x.memory", out="")
    assert code == 2
    assert said.splitlines() == [
        f"remamba: {small_disk / 'x.memory'} cannot be written: the disk is full; free some "
        "space, or choose another place"
    ]
    assert not os.listdir(small_disk)


def test_stderr_holds_no_line_of_other_libraries(tmp_path: Path) -> None:
    """torchao and bitsandbytes, where they are installed, talk while transformers is imported."""
    document = tmp_path / "doc.txt"
    document.write_text("The wolf lived in Oslo. Anna signed the contract in May.")
    place = tmp_path / "x.memory"
    code, said = remamba_("read", document, "--output", place, out="")
    assert code == 0
    assert len(said.splitlines()) == 1, said
    assert f"{place} has" in said


LONG = "a" * 300
MIXTURE = ("data", "build", "openorca-longalpaca", "--openorca", __file__, "--longalpaca", __file__)


@pytest.mark.parametrize(
    "words",
    [
        ("data", "build", "planted", "--books", "none.txt", "--documents", "1"),
        (*MIXTURE, "--tokenizer", str(PACKAGE / "assets" / "remamba-tiny")),
        ("train", "--base", "remamba-tiny", "--data", "none.jsonl"),
        ("eval", "needle", "--data", "."),
        ("reproduce", "fig5", "--scale", "tiny"),
        ("bench", "ops"),
        ("bench", "fig6", "--scale", "tiny"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_every_output_with_a_name_that_is_too_long(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--output", str(tmp_path / LONG)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f"{LONG} cannot be written: the name is too long; give a shorter one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--document", "--memory"])
def test_an_input_with_a_name_that_is_too_long(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", option, LONG, "--question", "x"]) == 2
    said = capsys.readouterr().err
    assert "File name too long" in said
    assert "written" not in said


@pytest.mark.parametrize("kind", ["fifo", "loop", "long", "proc"])
def test_read_refuses_before_it_reads(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything else: the document is not there, and that is not what is told."""
    place = {"long": tmp_path / ("a" * 300), "proc": Path("/proc/a")}.get(kind, tmp_path / "out")
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place.name)
    assert cli.main(["read", str(tmp_path / "none.txt"), "--output", str(place)]) == 2
    said = capsys.readouterr().err
    assert f"--output {place}" in said
    assert len(said.splitlines()) == 1
