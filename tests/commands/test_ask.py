"""`remamba ask`, from the command line to what it prints and writes."""

from __future__ import annotations

import io
import shutil
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from remamba import Answer, Document, Reader, ReMambaForCausalLM
from remamba.commands.answers import Answered, _kept_lines
from remamba.engine.kept_words import kept_words
from remamba.methods.plain import Plain
from remamba.methods.selection import WINDOW_STEP
from tests.tiny import (
    BEFORE,
    PAPER,
    QUESTION,
    TEXT,
    WHOLE,
    Run,
    ask,
    paper_kept,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)


@pytest.mark.parametrize("model", ["whole", "before", "paper"])
def test_ask_json(folder: Path, model: str, remamba: Run) -> None:
    found = remamba(*ask(folder, model, "--json", "--compare"))
    settings = {"whole": WHOLE, "before": BEFORE, "paper": PAPER}[model]
    ids = tiny_tokenizer()(TEXT * 4)["input_ids"]
    assert found["method"] == {"name": "remamba", "compression": settings.to_dict()}
    assert found["document_tokens"] == len(ids)
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert (found["seconds"]["read"] is None) == (model == "paper")
    (answer,) = found["answers"]
    assert answer["question"] == QUESTION
    assert set(answer["seconds"]) == {"prefill", "stage1", "stage2", "decode"}
    assert set(answer["plain"]) == {
        "answer", "finish_reason", "prompt_tokens", "new_tokens", "seconds",
    }  # fmt: skip
    for word in answer["kept"]:
        assert (TEXT * 4)[word["start"] : word["stop"]] == word["text"]
        assert all(0 <= position < len(ids) for position in word["positions"])
        assert -1 <= word["score"] <= 1.001
    kept = sum(len(word["positions"]) for word in answer["kept"])
    assert kept == (paper_kept(len(ids)) if model == "paper" else 6)


@pytest.mark.parametrize("model", ["whole", "before", "paper"])
def test_ask_equals_generate(folder: Path, model: str, remamba: Run) -> None:
    """Document and question tokenised apart, the question in the model's own template."""
    (answer,) = remamba(*ask(folder, model, "--json", "--compare"))["answers"]
    loaded = ReMambaForCausalLM.from_pretrained(folder / model).eval()
    tokenizer = tiny_tokenizer()
    question = tokenizer(f"\nQ: {QUESTION}\nA:")["input_ids"]
    ids = torch.tensor([tokenizer(TEXT * 4)["input_ids"] + question])
    for found, compression in ((answer, None), (answer["plain"], False)):
        expected = loaded.generate(
            ids,
            question_lengths=torch.tensor([len(question)]),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            compression=compression,
        )[0, ids.shape[1] :]
        assert found["answer"] == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert found["prompt_tokens"] == ids.shape[1]


def test_ask_on_a_terminal(folder: Path, tmp_path: Path, remamba: Run) -> None:
    page = tmp_path / "selection.html"
    evil = tmp_path / "evil.txt"
    evil.write_text(TEXT + "<script>alert(1)</script> [red]\x1b[31m here.\n", encoding="utf-8")
    out = remamba("ask", "--model", folder / "whole", "--document", evil, "--question", QUESTION,
                  "--question", "Second?", "--compare", "--selection", page, "--num-kept", 200,
                  "--show", 200, "--max-new-tokens", 3)  # fmt: skip
    assert QUESTION in out and "Second?" in out
    for label in ("ReMamba", "Mamba", "kept", "time", "document", "stage 2"):
        assert label in out
    assert "Paris" in out and "[red]" in out
    assert "\x1b" not in out
    source = page.read_text(encoding="utf-8")
    assert "<script>" not in source
    assert "&lt;" in source and "alert</mark>" in source
    assert source.count("<section>") == 2


@pytest.mark.parametrize(
    ("show", "heading", "shown"),
    [
        (
            9,
            "; position and score:",
            [
                ("0 0.50  1-4 0.77", ["Tom", "Hill", "lives", "in", "Paris"]),
                ("40-41 0.64  43,45 0.60", ["Helen", "dulcimer"]),
            ],
        ),
        (
            2,
            "; position and score, the best 2 of 4 places:",
            [("1-4 0.77", ["Hill", "lives", "in", "Paris"]), ("40-41 0.64", ["Helen"])],
        ),
        (
            1,
            "; position and score, the best 1 of 4 places:",
            [("1-4 0.77", ["Hill", "lives", "in", "Paris"])],
        ),
        (0, "", []),
    ],
)
def test_neighbours_of_one_score_are_one_place(
    show: int, heading: str, shown: list[tuple[str, list[str]]]
) -> None:
    tokens = ["Tom", " Hill", " lives", " in", " Paris", *[" and"] * 35, " Hel", "en", " plays"]
    tokens += [" dul", "ci", "mer"]
    ends = list(accumulate(map(len, tokens)))
    offsets = [(end - len(token), end) for token, end in zip(tokens, ends, strict=True)]
    window = [(i, 0.77 - (4 - i) * WINDOW_STEP) for i in range(1, 5)]
    kept = [(0, 0.5), *window, (40, 0.64), (41, 0.3), (43, 0.6), (45, 0.2)]
    reader = Reader(tiny_model(), tiny_tokenizer())
    document = Document(reader, "".join(tokens), list(range(46)), offsets, Plain())
    words = tuple(kept_words(document.text, offsets, kept))
    answer = Answer("", words, {}, "remamba", "length", 46, [], kept)
    answered = Answered(QUESTION, answer, None, document)
    first, *lines = _kept_lines(document, answered, len(kept), show)
    assert first.plain == f"  kept     9 of 46 tokens (19.6 %){heading}"
    found = []
    for line in lines:
        marked = [line.plain[s.start : s.end] for s in line.spans if s.style == "bold reverse"]
        entries = [line.plain[s.start : s.end] for s in line.spans if s.style in ("cyan", "dim")]
        assert line.plain.startswith("    " + "".join(entries))
        found.append(("".join(entries).rstrip(), marked))
    assert found == shown


def test_a_page_replaces_nothing_unasked(
    folder: Path, tmp_path: Path, remamba: Run, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "doc.txt", tmp_path / "doc.txt")
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = ["ask", "--model", folder / "whole", "--document", tmp_path / "doc.txt"]
    words += ["--question", QUESTION, "--max-new-tokens", 3]
    with monkeypatch.context() as patch:  # refused before any work
        patch.setattr("remamba.commands.model_options.ModelOptions.load", None)
        said = refused(*words, "--selection", page)
        assert f"--selection {page} exists; give --overwrite" in said
        for more in ([], ["--overwrite"]):
            said = refused(*words, "--selection", tmp_path / "doc.txt", *more)
            assert "is the file that is read" in said
        assert f"--selection {tmp_path} is a directory" in refused(*words, "--selection", tmp_path)
    assert page.read_text() == "mine"
    assert (tmp_path / "doc.txt").read_bytes() == (folder / "doc.txt").read_bytes()
    remamba(*words, "--selection", page, "--overwrite")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_times_say_what_was_read(folder: Path, tmp_path: Path, remamba: Run) -> None:
    """Behind a memory, written before or now, only the question is read first."""

    def times(*argv: object) -> list[str]:
        out = remamba(*argv).splitlines()
        return [line for line in out if line.startswith(("  time ", "  Mamba's "))]

    memory = tmp_path / "m"
    remamba("read", folder / "doc.txt", "--model", folder / "whole", "--output", memory)
    own, plain = times(*ask(folder, "whole", "--memory", memory, "--compare"))
    assert own.startswith("  time     question ") and "stage 1" not in own
    assert plain.startswith("  Mamba's  document same reading, question ")
    own, plain = times(*ask(folder, "whole", "--compare"))
    assert own.startswith("  time     document ") and " s, question " in own
    assert plain.startswith("  Mamba's  document same reading, question ")
    own, plain = times(*ask(folder, "whole", "--plain-model", folder / "paper"))
    assert plain.startswith("  Mamba's  prompt ")
    own, plain = times(*ask(folder, "paper", "--compare"))
    assert own.startswith("  time     stage 1 ") and plain.startswith("  Mamba's  prompt ")


def test_ask_reads_standard_input(
    folder: Path, remamba: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfTom lives\r\nin Paris."))
    monkeypatch.setattr(sys, "stdin", stdin)
    found = remamba("ask", "--model", folder / "whole", "--document", "-", "--json",
                    "--question", QUESTION, "--max-new-tokens", 2, "--num-kept", 99)  # fmt: skip
    text = "Tom lives\nin Paris."
    assert [w["text"] for w in found["answers"][0]["kept"] if w["text"].isalpha()] == (
        ["Tom", "lives", "in", "Paris"]
    )
    assert found["document_tokens"] == len(tiny_tokenizer()(text)["input_ids"])


def test_ask_with_another_plain_model(folder: Path, tmp_path: Path, remamba: Run) -> None:
    save_tiny(
        tmp_path / "plain", seed=9, compression=PAPER, question_template="\nQ: {question}\nA:"
    )
    both = remamba(*ask(folder, "paper", "--json", "--plain-model", tmp_path / "plain"))
    shutil.copy(folder / "doc.txt", tmp_path)
    own = remamba(*ask(tmp_path, "plain", "--json", "--method", "plain"))
    assert both["answers"][0]["plain"]["answer"] == own["answers"][0]["answer"]
    assert both["plain_model"] == str(tmp_path / "plain")


def test_templates_and_stops(folder: Path, remamba: Run) -> None:
    free = remamba(*ask(folder, "whole", "--json", "--temperature", 1, "--max-new-tokens", 40,
                        "--question-template", r"\n{question}\n"))["answers"][0]  # fmt: skip
    again = remamba(*ask(folder, "whole", "--json", "--temperature", 1, "--max-new-tokens", 40,
                         "--question-template", "\n{question}\n"))["answers"][0]  # fmt: skip
    assert free["answer"] == again["answer"]
    start = next(i for i in range(2, 99) if "\ufffd" not in free["answer"][i : i + 2])
    stop = free["answer"][start : start + 2]
    short = remamba(*ask(folder, "whole", "--json", "--temperature", 1, "--max-new-tokens", 40,
                         "--question-template", r"\n{question}\n", "--stop", stop))  # fmt: skip
    assert short["answers"][0]["finish_reason"] == "stop"
    assert free["answer"].startswith(short["answers"][0]["answer"])
    assert stop not in short["answers"][0]["answer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--document", None], "either --document FILE or --memory FILE"),
        (["--memory", "m"], "either --document FILE or --memory FILE"),
        (["--question", None], "there is no question"),
        (["--question", " "], "a question is empty"),
        (["--document", "missing.txt"], "missing.txt cannot be read"),
        (["--document", "."], "cannot be read"),
        (["--document", "EMPTY"], "is empty"),
        (["--document", "BINARY"], "is a binary file"),
        (["--document", "LATIN"], "is not UTF-8 text"),
        (["--question-template", "Q:"], "lacks {question}"),
        (["--selection", "nowhere/x.html"], "there is no folder nowhere"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--top-p", "2"], "top_p"),
        (["--length", "1.5"], "length (p) = 1.5"),
        (["--placement", "above"], "choose one of replace"),
        (["--method", "plain", "--compare"], "nothing to compare"),
        (["--device", "cuda:77"], "--device cuda:77 is not on this machine"),
        (["--device", "abacus"], "--device abacus is not on this machine"),
        (["--device", "meta"], "--device meta is not on this machine"),
        (["--model", "NOWHERE"], "no directory"),
        (["--plain-model", "NOWHERE"], "no directory"),
        (["--piece-length", "0"], "--piece-length 0"),
        (["--show", "-1"], "--show -1"),
        (["--stop", ""], "stop string is empty"),
        (["--memory", "m", "--document", None, "--plain-model", "x"], "give --document"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_ask_refuses(
    folder: Path, tmp_path: Path, refused: Run, change: list[str | None], message: str
) -> None:
    files = {"EMPTY": b" \n\n", "BINARY": b"%PDF\x00\x01", "LATIN": "café".encode("latin-1")}
    arguments: dict[str, Any] = {
        "--model": folder / "whole",
        "--document": folder / "doc.txt",
        "--question": QUESTION,
    }
    flags = [word for word in change if word == "--compare"]
    pairs = [word for word in change if word != "--compare"]
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if value in files:
            (tmp_path / value).write_bytes(files[value])
            value = str(tmp_path / value)
        arguments[str(name)] = tmp_path / "no" / "model" if value == "NOWHERE" else value
    words = [w for n, v in arguments.items() if v is not None for w in (n, v)]
    assert message in refused("ask", *words, *flags)


@pytest.mark.gpu
def test_ask_on_a_gpu(folder: Path, tmp_path: Path, remamba: Run) -> None:
    """A memory written on the CPU is read on the GPU, in bfloat16 too."""
    memory = tmp_path / "m"
    remamba("read", folder / "doc.txt", "--model", folder / "whole", "--output", memory,
            "--device", "cpu")  # fmt: skip
    words = ask(folder, "whole", "--memory", memory, "--json", "--compare")
    on_cpu = remamba(*words, "--device", "cpu")
    on_gpu = remamba(*words, "--device", "cuda", "--dtype", "float32")
    assert on_cpu["answers"][0]["answer"] == on_gpu["answers"][0]["answer"]
    assert remamba(*words)["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ask_in_half_precision(folder: Path, dtype: str, remamba: Run) -> None:
    found = remamba(*ask(folder, "whole", "--dtype", dtype, "--json"))
    assert found["dtype"] == dtype
    assert found["answers"][0]["new_tokens"] == 6
