"""A published Mamba as it is: the model that a conversion gives, without the conversion."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from remamba import Ask, InputError, Reader, ReMambaForCausalLM
from remamba.bare_model import BareReMamba
from remamba.checkpoints.convert import convert
from remamba.checkpoints.published import is_published, load_published
from remamba.engine.reader import UNTRAINED, UNTRAINED_MEMORY
from remamba.execution.passes import PassOptions
from remamba.execution.steps import finish
from remamba.methods.plain import Plain
from remamba.model.layers import vocabulary_logits
from tests.tiny import QUESTION, TEXT, Run, save_tiny, tiny_tokenizer

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
KINDS: dict[str, Any] = {
    "mamba": (MambaForCausalLM, MambaConfig, {}),
    "mamba2": (Mamba2ForCausalLM, Mamba2Config, {"head_dim": 16, "num_heads": 4, "n_groups": 1}),
    "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, {}),
}


def published(folder: Path, kind: str, **more: Any) -> Path:
    """A directory as transformers writes it, with the tiny tokenizer."""
    torch.manual_seed(2)
    model, config, own = KINDS[kind]
    made = model(config(vocab_size=len(tiny_tokenizer()), **SIZE, **own, **more))
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def logits_of(model: BareReMamba, ids: torch.Tensor) -> torch.Tensor:
    """(b, l, vocab) by the model's own way of reading."""
    passage = finish(model.passing(model.enter(ids), None, None, None, PassOptions()))
    return vocabulary_logits(model.lm_head, passage.hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_a_conversion_gives(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = published(tmp_path / "theirs", kind, tie_word_embeddings=tied)
    assert is_published(folder)
    loaded = load_published(folder, torch.float32)
    convert(folder, tmp_path / "ours")
    assert not is_published(tmp_path / "ours")
    converted = ReMambaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ours, theirs = loaded.state_dict(), converted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.lm_head.weight is loaded.backbone.embeddings.weight) is tied
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        logits = logits_of(loaded, ids)
        assert torch.equal(logits, converted(ids, method="plain").logits)
        own = KINDS[kind][0].from_pretrained(folder).eval()(ids).logits
        torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    assert not any(t.is_meta for t in loaded.buffers()) and loaded.config.method == "plain"


def test_state_spaces_layout(tmp_path: Path) -> None:
    folder = published(tmp_path / "theirs", "mamba")
    weights = MambaForCausalLM.from_pretrained(folder).state_dict()
    ssm = {"layer": "Mamba1", "d_state": 8}
    config = {"d_model": 32, "n_layer": 2, "vocab_size": len(tiny_tokenizer()), "ssm_cfg": ssm}
    other = tmp_path / "state-spaces"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "pad_vocab_size_multiple": 1}))
    names = {name: name.replace("embeddings.", "embedding.") for name in weights}
    torch.save({names[name]: tensor for name, tensor in weights.items()},
               other / "pytorch_model.bin")  # fmt: skip
    tiny_tokenizer().save_pretrained(other)
    assert is_published(other)
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        found, expected = (
            logits_of(load_published(one, torch.float32), ids) for one in (other, folder)
        )
    assert torch.equal(found, expected)


def test_a_reader_takes_it_and_reads_what_bm25_finds(tmp_path: Path) -> None:
    folder = published(tmp_path / "theirs", "mamba")
    reader = Reader(folder, device="cpu")
    assert reader.is_untrained and reader.method == UNTRAINED
    (answer,) = reader.answer([Ask(TEXT * 40, QUESTION)])
    assert answer.method == "bm25" and answer.passages is not None
    (prompt,) = reader.answer([Ask(prompt=TEXT)])
    assert prompt.method == "plain"
    assert reader.read(TEXT * 40, method="plain").method == Plain()
    with pytest.raises(InputError, match="this model was not trained for it"):
        reader.answer([Ask(TEXT, QUESTION, method="remamba")])


def test_commands_take_it(tmp_path: Path, remamba: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from remamba import cli

    folder = published(tmp_path / "theirs", "mamba")
    document = tmp_path / "doc.txt"
    document.write_text(TEXT * 60)
    asked = ["ask", "--model", folder, "--document", document, "--question", QUESTION]
    asked += ["--max-new-tokens", 3, "--device", "cpu"]
    assert cli.main([str(word) for word in asked]) == 0
    said = capsys.readouterr()
    assert "reading the passages that BM25 finds for each question, 500 tokens at most, since " in (
        said.err
    )
    assert f"{folder} has no trained selection; --method plain reads it whole" in said.err
    assert "  read     characters " in said.out
    found = remamba(*asked, "--json")
    assert found["method"]["name"] == "bm25"
    asked += ["--method", "chunks", "--candidates", 3]
    found = remamba(*asked, "--json")
    (passage,) = found["answers"][0]["passages"]
    assert (TEXT * 60)[passage["start"] : passage["stop"]].startswith(passage["text"][:20])
    plain = remamba(*asked[:-4], "--method", "plain", "--json")
    assert plain["answers"][0]["passages"] is None
    memory = tmp_path / "m.memory"
    read = ("read", document, "--model", folder, "--output", memory, "--device", "cpu")
    assert remamba(*read, "--json")["method"] == UNTRAINED_MEMORY.to_dict()
    again = [word if word != document else memory for word in asked[:-4]]
    again[again.index("--document")] = "--memory"
    told = remamba(*again, "--json")["answers"][0]
    assert (told["answer"], told["passages"]) == (
        found["answers"][0]["answer"], found["answers"][0]["passages"],
    )  # fmt: skip
    bm25 = remamba(*asked[:-4], "--method", "bm25", "--method-tokens", 60, "--json")
    assert bm25["method"] == {"name": "bm25", "tokens": 60, "reader": {"name": "plain"}}
    generated = ["generate", "--model", folder, "--prompt", TEXT, "--max-new-tokens", 3]
    assert cli.main([*map(str, generated), "--device", "cpu"]) == 0


def test_what_is_no_published_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "ours")
    assert not is_published(tmp_path / "ours") and not is_published(tmp_path / "nothing")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    assert not is_published(tmp_path / "list")
    folder = published(tmp_path / "theirs", "mamba")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="truncated or corrupt"):
        Reader(folder, device="cpu")


def test_a_hub_name_without_a_network_is_answered_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    begun = time.perf_counter()
    assert not is_published("nobody/nothing")
    for action in (
        lambda: Reader("nobody/nothing", device="cpu"),
        lambda: load_published("nobody/nothing", torch.float32),
        lambda: convert("nobody/nothing", tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="nobody/nothing") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - begun < 4
