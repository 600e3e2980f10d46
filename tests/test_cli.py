"""The dispatcher: help that teaches, exit codes, one line for what cannot be used."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from remamba import cli
from remamba.commands import doctor
from remamba.errors import InputError
from remamba.methods.base import METHODS, method_of

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object], int | None]], None]:
    """Adds a command `probe` (one option `--count`) whose run is the given function."""

    @dataclasses.dataclass(frozen=True)
    class Args:
        """A command for tests."""

        count: int = 1
        """How many."""

    def add(run: Callable[[object], int | None]) -> None:
        module = types.ModuleType("remamba_probe")
        module.Args = Args  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "remamba_probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("remamba_probe", "a command for tests"))

    return add


def raising(error: BaseException) -> Callable[[object], int | None]:
    def run(args: object) -> int | None:
        raise error

    return run


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_teaches(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for name, (_, text) in cli.commands().items():
        assert f"  {name} " in out
        assert text in out
    assert sum(line.startswith("  remamba ") for line in out.splitlines()) == 3
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("remamba ")


@pytest.mark.parametrize(("word", "near"), [("convret", "convert"), ("docter", "doctor")])
def test_unknown_command_suggests(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"remamba: {word!r} is not a command; did you mean {near!r}?\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("evl needle", "'evl' is not a command; did you mean 'eval'?"),
        ("needle", "'needle' is not a command; did you mean 'eval needle'?"),
        ("data biuld planted", "'data biuld' is not a command; did you mean 'data build'?"),
        ("data planted", "'data planted' is not a command; did you mean 'data build planted'?"),
        (
            "data build plantd --output x",
            "'data build plantd' is not a command; did you mean 'data build planted'?",
        ),
        ("bench opps", "'bench opps' is not a command; did you mean 'bench ops'?"),
        ("data xyzzy", "'data xyzzy' is not a command; remamba data --help lists the commands"),
        (
            "data build --output x",
            "'data build' is not a whole command; remamba data build --help lists the commands",
        ),
        ("--verson", "'--verson' is not a command; remamba --help lists the commands"),
    ],
)
def test_unknown_command_of_a_group(
    argv: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv.split()) == 2
    assert capsys.readouterr() == ("", f"remamba: {said}\n")


def test_unknown_command_of_a_group_that_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "tabel", "--output", "x"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "'tabel'" in said.err
    assert said.err.endswith("; did you mean 'eval table'? see remamba eval --help\n")
    # no advice about a word that is right
    assert cli.main(["eval", "leval", "--outptu", "x"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("group", ["data", "data build", "bench"])
def test_a_group_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    below = {
        name: text for name, (_, text) in cli.commands().items() if name.startswith(f"{group} ")
    }
    assert len(below) > 1
    for flag in ("--help", "-h"):
        assert cli.main([*group.split(), flag]) == 0
        listed = capsys.readouterr()
        assert listed.err == ""
        lines = [" ".join(line.split()) for line in listed.out.splitlines()]
        assert lines[-len(below) :] == [f"{name} {text}" for name, text in below.items()]
    assert cli.main(group.split()) == 2
    assert capsys.readouterr() == ("", listed.out)


def test_help_of_a_command_lists_those_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["eval", "--help"])
    assert exit_.value.code in (0, None)
    options, _, further = capsys.readouterr().out.partition("further commands:\n")
    assert "--output DIR" in options
    below = [name for name in cli.commands() if name.startswith("eval ")]
    assert [" ".join(line.split()[:2]) for line in further.splitlines()] == below
    with pytest.raises(SystemExit):
        cli.main(["eval", "table", "--help"])
    assert "further commands" not in capsys.readouterr().out


def test_unknown_command_far_from_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert "remamba --help" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(cli.commands()))
def test_commands_exist(name: str) -> None:
    module, _, args = cli.commands()[name][0].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    # what a command is read into may hang on some of its options
    options = {"Choice", "args_type"} if "Choice" in names else {args or "Args"}
    assert options | {"run"} <= names


@pytest.mark.parametrize("code", [None, 0, 1, 3], ids=str)
def test_exit_code_is_the_commands(command, code: int | None) -> None:
    command(lambda args: code)
    assert cli.main(["probe"]) == (code or 0)


def test_arguments_reach_the_command(command) -> None:
    seen = []
    command(seen.append)
    assert cli.main(["probe", "--count", "7"]) == 0
    assert seen[0].count == 7


@pytest.mark.parametrize(
    "error",
    [
        InputError("the value\n is wrong"),
        FileNotFoundError(2, "No such file or directory", "some.txt"),
        IsADirectoryError(21, "Is a directory", "some.txt"),
        PermissionError(13, "Permission denied", "some.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unusable_input_is_one_line(
    command, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert cli.main(["probe"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("remamba: ")
    assert said.err.count("\n") == 1
    if isinstance(error, OSError):
        assert "some.txt" in said.err


def test_interrupt(command) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130


def test_other_errors_are_not_hidden(command) -> None:
    command(raising(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["probe"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--count", "x"], "Error parsing --count: invalid literal"),
        (["--counts", "3"], "Unrecognized options: --counts, 3 (perhaps --count INT"),
        (["stray"], "Unrecognized options: stray"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(
    command, argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda args: None)
    assert cli.main(["probe", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert expected in said.err
    assert said.err.endswith("; see remamba probe --help\n")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("convert", "SRC, DST"),
        ("read", "DOCUMENT, --output"),
        ("train", "--base, --output, --data"),
    ],
)
def test_missing_arguments_are_named(
    name: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr().err == f"remamba: missing: {missing}; see remamba {name} --help\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_missing_arguments_in_any_encoding(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remamba.cli", "convert"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "40"},
    )
    assert done.returncode == 2
    assert done.stderr == "remamba: missing: SRC, DST; see remamba convert --help\n"


def test_train_help_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert "None" not in out and "INT" not in out and "FLOAT" not in out
    for shown in ("--base NAME|DIR", "--length LO HI", "--max-steps N", "--no-group-by-length"):
        assert shown in out


def test_command_help(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda args: None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["probe", "--help"])
    assert exit_.value.code in (0, None)
    assert "How many." in capsys.readouterr().out


def test_reader_that_leaves_is_no_error() -> None:
    """A closed pipe downstream (`remamba ... | head`) ends the command without a word."""
    program = "import sys\nfrom remamba import cli\nsys.exit(cli.main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_doctor_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["threads"]["torch"] >= 1
    assert {"op", "implementation", "why"} == set(found["ops"][0])
    assert isinstance(found["embedded_model"]["present"], bool)
    kernels = found["c_kernels"]
    assert bool(kernels["why"]) != Path(kernels["library"] or "").is_file()


def test_doctor_text_names_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for op in ("selective_scan", "ssd", "causal_conv"):
        assert op in out
    for method, left in (("scale", "no states in place"), ("filter", "reads without CUDA graphs")):
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [method])
        assert left in line
    assert "torch" in out and "cpu" in out


def test_doctor_knows_every_method_with_a_layer_rule() -> None:
    ruled = {name for name in METHODS if method_of(name).has_rule}
    assert set(doctor.LAYER_RULES) == ruled == {"filter", "scale", "decimate"}


def test_doctor_shows_a_backend_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMAMBA_BACKEND", "fast")
    assert cli.main(["doctor"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "selective_scan" in line]
    assert "REMAMBA_BACKEND: no backend 'fast'" in rows[0]
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"][0]["implementation"] is None


def test_doctor_without_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise InputError(f"{name} is not in this installation")

    monkeypatch.setattr("remamba.pretrained.locate", missing)
    assert cli.main(["doctor"]) == 0
    assert "remamba-tiny is not in this installation" in capsys.readouterr().out
