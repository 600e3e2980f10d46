"""The `remamba` command: finds the subcommand, reads its arguments, turns errors into exit codes.

Exit codes: 0 done; 2 what the user gave cannot be used (one line on stderr, no traceback);
1 anything else. A subcommand's module is imported only when that subcommand runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from errno import ELOOP, ENAMETOOLONG
from typing import Any

from remamba import plugins
from remamba.errors import InputError
from remamba.fields import check_fields
from remamba.files import REASONS
from remamba.provenance import package_version

COMMANDS: dict[str, tuple[str, str]] = {
    "ask": ("remamba.commands.ask", "answer a question from a long document"),
    "read": ("remamba.commands.read", "read a document once into a memory file for many questions"),
    "generate": ("remamba.commands.generate", "continue a prompt, streamed"),
    "convert": (
        "remamba.commands.convert",
        "turn a published Mamba, Mamba-2 or Falcon-Mamba checkpoint into a ReMamba one",
    ),
    "serve": ("remamba.commands.serve", "answer OpenAI's clients over HTTP"),
    "train": ("remamba.commands.train", "train a ReMamba or a plain Mamba model"),
    "merge": ("remamba.commands.merge", "write a trained adapter and its base as a plain model"),
    "eval": ("remamba.commands.eval", "ask a model LongBench-E or L-Eval, then score and report"),
    "eval needle": ("remamba.commands.eval_needle", "ask for facts hidden in long prose"),
    "eval short": ("remamba.commands.eval_short", "the six short tasks, by lm-evaluation-harness"),
    "eval score": ("remamba.commands.eval_score", "score predictions of LongBench-E or L-Eval"),
    "eval table": (
        "remamba.commands.eval_table",
        "many runs as one of the paper's tables or figures",
    ),
    "eval compare": ("remamba.commands.eval_compare", "two runs on the same questions, paired"),
    "calibrate": (
        "remamba.commands.calibrate",
        "make the table that the methods filter and scale read by",
    ),
    "verify": ("remamba.commands.verify", "check that a model computes here what it should"),
    "doctor": ("remamba.commands.doctor", "show versions, devices and which kernels run here"),
}
"""Command words -> (module, one-line help), in the order of `remamba --help`.

A module that holds the options of several commands names those of this one behind a colon.
Words that commands have in front of others ("data", "eval") are a group, which lists them.
"""

EXAMPLES = (
    'remamba ask --document report.txt --question "Who signed the contract?" --compare',
    "remamba convert state-spaces/mamba-130m-hf models/remamba-130m",
    "remamba read report.txt --output report.memory",
)


TALKATIVE = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn while transformers is imported, where those libraries are installed, of kernels
for other machines and of one another; a command's stderr is for its own lines."""


SPINS = "10000"
"""How often threads of OpenMP look whether they may go on before they sleep. By their own number,
of milliseconds, a program is many times slower beside others; without any, slower by itself."""


def commands() -> dict[str, tuple[str, str]]:
    """This package's commands and those of other packages (see `remamba.plugins`)."""
    known = dict(COMMANDS)
    for more in plugins.found("commands"):
        known |= more
    return known


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        try:
            return _dispatch(argv)
        finally:
            print(end="", flush=True)
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _reader_left()
        if isinstance(error, _UNUSABLE_FILE) or error.errno in (ENAMETOOLONG, ELOOP):
            return _refuse(_file_message(error))
        if error.errno in REASONS:
            return _not_written(error)
        raise
    except UnicodeDecodeError as error:
        return _refuse(
            f"a file is not {error.encoding} text (byte {error.start}: {error.reason}); "
            "save it as UTF-8"
        )
    except KeyboardInterrupt:
        print("remamba: interrupted", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"remamba {_version()}")
        return 0
    tried = (" ".join(argv[:words]) for words in (3, 2, 1))
    name = next((n for n in tried if n in commands()), None)
    if name is None:
        return _group(argv)
    module_name, _, args_name = commands()[name][0].partition(":")
    module = importlib.import_module(module_name)
    argv = argv[len(name.split()) :]
    if hasattr(module, "Choice"):
        args_type = module.args_type(_parse(module.Choice, name, argv, is_part=True))
    else:
        args_type = getattr(module, args_name or "Args")
    args = _parse(args_type, name, argv)
    code = module.run(args)
    return 0 if code is None else code


def _parse(args_type: Any, name: str, argv: list[str], is_part: bool = False) -> Any:
    """Reads `argv` into `args_type`; tyro's framed message becomes one InputError line.

    Args:
        is_part: `args_type` has some of the command's options; the others are passed over.
    """
    import tyro

    prog = f"remamba {name}"
    said = io.StringIO()
    flags = (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(said):
            if is_part:
                return tyro.cli(
                    args_type, args=argv, prog=prog, config=flags, return_unknown_args=True,
                    add_help=False,
                )[0]  # fmt: skip
            args = tyro.cli(args_type, args=argv, prog=prog, config=flags)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            if _below(name) and {"-h", "--help"} & set(argv):
                print(f"further commands:\n{_listed(_below(name))}")
            raise
        message = _unframe(said.getvalue())
        # a mistyped command of the group `eval` was read as the first argument of `eval` itself
        near = _nearest(argv[0], name) if argv and repr(argv[0]) in message else None
        hint = f"did you mean {near!r}? " if near else ""
        raise InputError(f"{message}; {hint}see {prog} --help") from None
    if dataclasses.is_dataclass(args):
        check_fields(args, lambda name: "--" + name.replace("_", "-"))
    return args


def _unframe(panel: str) -> str:
    """The sentence inside tyro's framed error: no frame, no advice, no line breaks."""
    if missing := _missing(panel):
        return f"missing: {', '.join(missing)}"
    sections: list[list[str]] = [[]]
    for line in panel.splitlines():
        line = line.strip("│ ")
        if line and line[0] in "╭╰":
            continue
        if line.strip("─-"):
            sections[-1].append(line)
        elif line:
            sections.append([])
    # a terminal without box characters gets the title inside, as a section of its own
    if "╭" not in panel and len(sections) > 1:
        del sections[0]
    message = " ".join(sections[0]).rstrip(".:; ") or "the arguments cannot be used"
    for section in sections[1:]:
        if section[:1] == ["Perhaps you meant:"] and len(section) > 1:
            message += f" (perhaps {section[1]})"
    return message


def _missing(panel: str) -> list[str]:
    """The required arguments that tyro's error lists, each above its indented help."""
    lines = panel.replace("│", " ").splitlines()
    margin, names = None, []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if "Missing from" in line:
            margin = indent + 4
        elif margin is not None and line.strip("─- "):
            if indent < margin:
                break
            if indent == margin:
                names.append(line.split()[0])
    return names


def help_text(group: str = "") -> str:
    """What `remamba --help` prints: the commands with a line each, and three examples.

    With a group's words, such as "data build", what `remamba data build --help` prints.
    """
    if group:
        return f"usage: remamba {group} COMMAND [OPTIONS]\n\ncommands:\n{_listed(_below(group))}"
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    return (
        "usage: remamba COMMAND [OPTIONS]\n\n"
        "Mamba models on inputs longer than they can remember.\n\n"
        f"commands:\n{_listed(list(commands()), widest=20)}\n\n"
        f"examples:\n{examples}\n\n"
        "remamba COMMAND --help lists a command's options. A model of a few megabytes is\n"
        "embedded; --model names another one."
    )


def _listed(names: Sequence[str], widest: int = 40) -> str:
    """A line for each command; a name longer than `widest` juts out."""
    width = max(len(name) for name in names if len(name) <= widest)
    return "\n".join(f"  {name:<{width}}  {commands()[name][1]}" for name in names)


def _below(group: str) -> list[str]:
    """The commands that begin with a group's words; none where it is no group."""
    return [name for name in commands() if name.startswith(f"{group} ")]


def _group(argv: list[str]) -> int:
    """What is in a group, for words that are no whole command.

    Raises:
        InputError: they are no group either.
    """
    words = 0
    while words < len(argv) and _below(" ".join(argv[: words + 1])):
        words += 1
    group, rest = " ".join(argv[:words]), argv[words:]
    if group and (not rest or rest[0] in ("-h", "--help")):
        print(help_text(group), file=sys.stdout if rest else sys.stderr)
        return 0 if rest else 2
    mend = f"remamba {group} --help" if group else "remamba --help"
    mend += " lists the commands"
    if group and rest[0].startswith("-"):
        raise InputError(f"{group!r} is not a whole command; {mend}")
    if near := _nearest(rest[0], group):
        mend = f"did you mean {near!r}?"
    raise InputError(f"{' '.join(argv[: words + 1])!r} is not a command; {mend}")


def _nearest(word: str, group: str = "") -> str | None:
    """The command, or group of commands, that was perhaps meant by a word behind a group's.

    The word is compared with what may stand there, and with whole commands ("needle" without
    "eval"). None when nothing is near.
    """
    place = len(group.split())
    known = {}
    for name in _below(group) if group else commands():
        words = name.split()
        known[words[place]] = " ".join(words[: place + 1])
        known.setdefault(" ".join(words[place:]), name)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return known[near[0]] if near else None


def _version() -> str:
    return package_version("remamba") or "(not installed; running from a checkout)"


_UNUSABLE_FILE = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def _file_message(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}; check the path"


def _refuse(message: str) -> int:
    print(f"remamba: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _not_written(error: OSError) -> int:
    """One line for a disk that is full or broken: behind standard output, or behind a cache."""
    what = str(error.filename or "a file")
    try:
        print(end="", flush=True)
    except OSError:
        what = "standard output cannot be written"
        _reader_left()
    print(f"remamba: {what}: {REASONS[error.errno or 0]}", file=sys.stderr)
    return 1


def _reader_left() -> int:
    """Quiet end for `remamba ... | head`: the interpreter's own flush at exit must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
