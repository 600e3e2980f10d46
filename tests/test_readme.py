"""README.md's code runs as it stands there, and prints what it shows."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from remamba import cli
from remamba.methods.base import METHODS, method_class
from remamba.pretrained import EMBEDDED, locate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"bash", "python", "json", "text"}
REASONS = ("network", "GPU", "hours")
"""What alone may keep a block from being run; its comment names one of them."""
PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of README.md."""

    language: str
    body: str
    reason: str | None
    """Why it is not run; None: it is."""


BLOCKS = [Block(m["language"], m["body"], m["reason"]) for m in FENCE.finditer(README)]


def bodies(language: str) -> list[str]:
    return [b.body for b in BLOCKS if b.language == language and b.reason is None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that README.md speaks of: a checkpoint, a report, books and rows for training."""
    made = tmp_path_factory.mktemp("readme")
    demo = ROOT / "examples" / "demo_document.txt"
    (made / "examples").mkdir()
    shutil.copy(demo, made / "examples")
    text = demo.read_text(encoding="utf-8")
    (made / "report.txt").write_text(text[:3000], encoding="utf-8")
    (made / "books").mkdir()
    (made / "books" / "one.txt").write_text(text[:12000], encoding="utf-8")
    (rows,) = bodies("json")
    (made / "facts.jsonl").write_text(rows, encoding="utf-8")
    torch.manual_seed(0)
    tokenizer = Path(locate(EMBEDDED)) / "tokenizer.json"
    tokens = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    config = MambaConfig(vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, state_size=8)
    MambaForCausalLM(config).save_pretrained(made / "my-mamba")
    for file in tokenizer.parent.glob("tokenizer*"):
        shutil.copy(file, made / "my-mamba")
    return made


def test_every_block_is_run_or_tells_why_not() -> None:
    assert len(BLOCKS) == README.count("\n```") // 2, "a block that this test does not see"
    assert {block.language for block in BLOCKS} <= LANGUAGES
    reasons = [block.reason for block in BLOCKS if block.reason is not None]
    assert README.count("<!--") == len(reasons), "a comment that belongs to no block"
    for reason in reasons:
        assert any(allowed in reason for allowed in REASONS), reason


def test_python_prints_what_the_comments_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for body in bodies("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, "README.md", "exec"), names)
        assert printed.getvalue().splitlines() == PRINTED.findall(body)
        calls = [node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)]
        assert sum(node.id == "print" for node in calls) == len(PRINTED.findall(body))
    assert names["out"].kept is not None
    assert len(names["positions_and_scores"]) == 1


def test_shell_prints_what_is_shown(folder: Path, tmp_path: Path) -> None:
    command = tmp_path / "remamba"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m remamba "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    said = ""
    for block in BLOCKS:
        if block.reason is not None:
            continue
        if block.language == "text":
            assert re.search(pattern_of(block.body), said), f"README.md shows other than:\n{said}"
        elif block.language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.body],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block.body}\n{done.stderr}"
            said = done.stdout
    assert json.loads((folder / "runs" / "needle" / "scores.json").read_text())


def pattern_of(shown: str) -> str:
    """A pattern of the output that a block shows, in which ... stands for anything left out."""
    return r"[\s\S]*".join(re.escape(part.strip(" ")) for part in shown.rstrip("\n").split("..."))


def test_the_methods_are_all_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (yes|no) \|$", README, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(METHODS)
    for name, _, needs_training in rows:
        assert method_class(name).needs_training == (needs_training == "yes"), name


def test_commands_that_are_named_exist() -> None:
    """`remamba eval compare RUN RUN` begins with a command, `remamba bench` with a group's word."""
    known = cli.commands()
    groups = {name.split()[0] for name in known}
    named = re.findall(r"`remamba (\w[\w-]*)(?: (\w[\w-]*))?", FENCE.sub("", README))
    assert named
    for first, second in named:
        is_known = (
            f"{first} {second}" in known or first in known or (first in groups and not second)
        )
        assert is_known, f"README.md names `remamba {first} {second}`"
