"""`remamba read` and the memory files that `ask` answers from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from remamba import DocumentMemory, ReMambaForCausalLM, cli
from remamba.methods.remamba import ReMamba
from remamba.pretrained import fingerprint
from tests.tiny import (
    BEFORE,
    TEXT,
    WHOLE,
    Run,
    ask,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)


@pytest.mark.parametrize("model", ["whole", "before"])
def test_a_memory_answers_as_the_document(
    folder: Path, model: str, tmp_path: Path, remamba: Run
) -> None:
    """Ten questions through a memory file, ten from the document at once, and each alone."""
    memory = tmp_path / "doc.memory"
    read = remamba("read", folder / "doc.txt", "--model", folder / model,
                   "--output", memory, "--json")  # fmt: skip
    assert read["bytes"] == memory.stat().st_size
    assert read["tokens"] == len(tiny_tokenizer()(TEXT * 4)["input_ids"])
    questions = [f"Who lives in house {i}?" for i in range(10)]
    asked = [word for question in questions for word in ("--question", question)]
    through = remamba(*ask(folder, model, "--memory", memory, "--json", "--compare", *asked))
    at_once = remamba(*ask(folder, model, "--json", "--compare", *asked))
    assert through["document_tokens"] == at_once["document_tokens"] == read["tokens"]
    keys = ("question", "answer", "finish_reason", "prompt_tokens", "new_tokens")
    for i, (one, other) in enumerate(zip(through["answers"], at_once["answers"], strict=True)):
        assert [one[key] for key in keys] == [other[key] for key in keys]
        assert one["plain"]["answer"] == other["plain"]["answer"]
        assert [w["text"] for w in one["kept"]] == [w["text"] for w in other["kept"]]
        assert [w["start"] for w in one["kept"]] == [w["start"] for w in other["kept"]]
        if i % 4 == 0:
            (alone,) = remamba(
                *ask(folder, model, "--memory", memory, "--json", "--question", questions[i])
            )["answers"]
            assert [alone[key] for key in keys] == [one[key] for key in keys]
            assert [w["positions"] for w in alone["kept"]] == [w["positions"] for w in one["kept"]]
    assert len({answer["answer"] for answer in through["answers"]}) > 1


def test_memory_options(folder: Path, tmp_path: Path, remamba: Run, refused: Run) -> None:
    """What can be changed behind a memory, what cannot, and a memory read by plain Mamba."""
    memory, plain = tmp_path / "doc.memory", tmp_path / "plain.memory"
    read = ["read", folder / "doc.txt", "--model", folder / "whole", "--output"]
    remamba(*read, memory, "--compact")
    remamba(*read, plain, "--method", "plain")
    fewer = remamba(*ask(folder, "whole", "--memory", memory, "--num-kept", 2, "--json"))
    assert sum(len(word["positions"]) for word in fewer["answers"][0]["kept"]) == 2
    off = remamba(*ask(folder, "whole", "--memory", memory, "--method", "plain", "--json"))
    own = remamba(*ask(folder, "whole", "--memory", plain, "--json"))
    assert off["method"] == own["method"] == {"name": "plain"}
    assert off["answers"][0]["answer"] == own["answers"][0]["answer"]
    assert off["answers"][0]["kept"] is None
    assert "read it again" in refused(*ask(folder, "whole", "--memory", memory, "--length", 0.5))
    assert "leave --num-kept out" in refused(
        *ask(folder, "whole", "--memory", plain, "--num-kept", 2)
    )
    with safe_open(memory, "pt") as file:
        assert file.get_tensor("hidden").dtype == torch.bfloat16


def test_memories_that_cannot_be_used(
    folder: Path, tmp_path: Path, remamba: Run, refused: Run
) -> None:
    memory = tmp_path / "doc.memory"
    read = ["read", folder / "doc.txt", "--model", folder / "whole", "--output", memory]
    remamba(*read)
    assert "--overwrite" in refused(*read)
    remamba(*read, "--overwrite")
    save_tiny(tmp_path / "other", seed=4, compression=WHOLE)
    said = refused(*ask(tmp_path, "other", "--memory", memory))
    assert "another model" in said and str(memory) in said

    data = memory.read_bytes()
    for size in (0, 5, 200, len(data) // 2, len(data) - 1):
        memory.write_bytes(data[:size])
        said = refused(*ask(folder, "whole", "--memory", memory))
        assert str(memory) in said and "truncated or corrupt" in said
    memory.unlink()
    assert "is no file" in refused(*ask(folder, "whole", "--memory", memory))
    shutil.copy(folder / "whole" / "model.safetensors", memory)
    assert "is no remamba-memory" in refused(*ask(folder, "whole", "--memory", memory))


def test_an_unbound_memory_of_other_sizes(folder: Path, tmp_path: Path, refused: Run) -> None:
    """One that names no model is refused; one with this model's mark is told by its sizes."""
    larger = tiny_model(hidden_size=36)
    memory = larger.read(torch.tensor([[5, 6, 7]]), compression=WHOLE)
    memory.fingerprint = ""
    memory.save(tmp_path / "m")
    said = refused(*ask(folder, "whole", "--memory", tmp_path / "m"))
    assert "does not tell whose states it holds" in said
    memory.fingerprint = fingerprint(ReMambaForCausalLM.from_pretrained(folder / "whole"))
    memory.save(tmp_path / "other")
    said = refused(*ask(folder, "whole", "--memory", tmp_path / "other"))
    assert "hidden size 36" in said


def test_a_memory_without_tokens(folder: Path, tmp_path: Path, remamba: Run, refused: Run) -> None:
    """Read by the library from embeddings: kept positions are told, words cannot be."""
    model = ReMambaForCausalLM.from_pretrained(folder / "whole").eval()
    memory = model.read(torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]]))
    memory.input_ids = None
    memory.save(tmp_path / "m")
    words = ask(folder, "whole", "--memory", tmp_path / "m")
    (answer,) = remamba(*words, "--json")["answers"]
    assert [len(word["positions"]) for word in answer["kept"]] == [1] * 6
    assert "kept     6 tokens" in remamba(*words)
    assert "holds no tokens" in refused(*words, "--selection", tmp_path / "x.html")


def test_read_is_exact(folder: Path, tmp_path: Path, remamba: Run) -> None:
    """The file holds what model.read returns; pieces change nothing."""
    paths = [tmp_path / "whole", tmp_path / "pieces"]
    for path, piece_length in zip(paths, (5000, 50), strict=True):
        remamba("read", folder / "doc.txt", "--model", folder / "before", "--output", path,
                "--piece-length", piece_length)  # fmt: skip
    model = ReMambaForCausalLM.from_pretrained(folder / "before").eval()
    ids = torch.tensor([tiny_tokenizer()(TEXT * 4)["input_ids"]])
    with torch.no_grad():
        expected = model.read(ids)
    for path in paths:
        memory = DocumentMemory.load(path, fingerprint(model))
        assert torch.equal(memory.input_ids, ids)  # type: ignore[arg-type]
        torch.testing.assert_close(memory.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
        assert memory.method == ReMamba(BEFORE)


def test_fingerprint() -> None:
    """The same in any precision; another for other weights, names or shapes."""
    model = tiny_model()
    own = fingerprint(model)
    assert own == fingerprint(tiny_model()) == fingerprint(model.bfloat16())
    others = [tiny_model(seed=4), tiny_model("mamba"), tiny_model(layer_norm_epsilon=1e-6)]
    changed = tiny_model()
    with torch.no_grad():
        changed.backbone.layers[1].mixer.adaption.theta.add_(0.1)
    marks = [own, *map(fingerprint, [*others, changed])]
    assert len(set(marks)) == len(marks)
    settings = tiny_model(compression=WHOLE, question_template="{question}?")
    assert fingerprint(settings) == own


def test_read_says_what_it_took(folder: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["read", str(folder / "doc.txt"), "--model", str(folder / "whole")]
    assert cli.main([*argv, "--output", str(tmp_path / "m")]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "tokens/s" in said.err and "MB" in said.err


def test_read_refuses(folder: Path, tmp_path: Path, refused: Run) -> None:
    def read(*more: object, model: str = "whole", document: str = "doc.txt") -> str:
        return refused("read", folder / document, "--model", folder / model, *more)

    out = ["--output", tmp_path / "m"]
    assert "a memory needs start=0" in read(*out, model="paper")
    assert "a memory needs start=0" in read(*out, "--length", 0.5)
    assert "cannot be read" in read(*out, document="missing.txt")
    assert "is a directory" in read("--output", tmp_path)
    assert "there is no folder" in read("--output", tmp_path / "no" / "m")
    assert "--output" in read()
    document = (folder / "doc.txt").read_bytes()
    said = read("--output", folder / "doc.txt", "--overwrite")
    assert "is the file that is read" in said
    assert (folder / "doc.txt").read_bytes() == document
    assert not (tmp_path / "m").exists()
