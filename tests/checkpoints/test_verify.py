"""`remamba verify`: a right model passes each check, a wrong one fails the right one.

The published checkpoints cannot be had without a network: small random models stand in for them,
with answers recorded by transformers' own classes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from remamba import cli
from remamba.checkpoints import verify
from remamba.checkpoints.convert import convert
from tests.tiny import save_tiny, tiny_tokenizer

KINDS = {
    "mamba": (MambaForCausalLM, MambaConfig, {}),
    "mamba2": (Mamba2ForCausalLM, Mamba2Config, {"head_dim": 16, "num_heads": 4, "n_groups": 1}),
    "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig, {}),
}
PROMPT = "the cat sat on"
Checks = dict[str, list[dict]]


def published(folder: Path, kind: str) -> Path:
    """A small random model of transformers' class, with a tokenizer."""
    torch.manual_seed(0)
    model, config, more = KINDS[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "eos_token_id": None}
    made = model(config(vocab_size=len(tiny_tokenizer()), **sizes, **more))
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def verified(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Checks:
    """The checks of a run by their names."""
    assert cli.main(["verify", *map(str, words), "--json"]) == code
    found: Checks = {}
    for check in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(check["name"], []).append(check)
    return found


def outcome(checks: Checks) -> dict[str, bool | None]:
    return {name: found[0]["passed"] for name, found in checks.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model_and_what_was_converted_from_it(kind: str, tmp_path, capsys) -> None:
    folder = published(tmp_path / "theirs", kind)
    found = outcome(verified(capsys, folder))
    assert found == {
        "weights": True, "batch": True, "pieces": True, "decoding": True, "memory": True,
        "equations": None, "transformers": True, "published": None,
    }  # fmt: skip
    convert(folder, tmp_path / "ours", compressor_init="tied")
    ours = verified(capsys, tmp_path / "ours", "--against", folder)
    assert outcome(ours) == {**found, "equations": True}
    assert 0 < ours["transformers"][0]["difference"] < ours["transformers"][0]["bound"]
    assert ours["memory"][0]["difference"] == ours["memory"][0]["bound"] == 0


def spoil(folder: Path, ending: str, change) -> None:
    """Change the tensors of a directory whose names have an ending."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    names = [name for name in tensors if name.endswith(ending)]
    assert names
    for name in names:
        tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "ending", ["in_proj.weight", "conv1d.bias", "A_log", "mixer.D", "dt_proj.bias", "norm_f.weight"]
)
def test_a_wrong_conversion_fails(ending: str, tmp_path: Path, capsys) -> None:
    folder = published(tmp_path / "theirs", "mamba")
    convert(folder, tmp_path / "ours", compressor_init="tied")
    spoil(tmp_path / "ours", ending, lambda x: x * 1.2 + 0.1)
    found = outcome(verified(capsys, tmp_path / "ours", "--against", folder, code=1))
    assert [name for name, passed in found.items() if passed is False] == ["transformers"]


def test_weights_that_are_no_numbers_fail(tmp_path: Path, capsys) -> None:
    folder = save_tiny(tmp_path / "ours")
    spoil(folder, "mixer.D", lambda x: x.index_fill(0, torch.tensor(0), float("nan")))
    assert cli.main(["verify", str(folder)]) in (1, 2)
    said = capsys.readouterr()
    assert "not finite" in said.err or "FAILED" in said.out


def test_decoding_that_forgets_a_state_fails(tmp_path: Path, capsys, monkeypatch) -> None:
    load = verify.DecodeStep.load

    def forgetful(self, cache, row: int) -> None:
        load(self, cache, row)
        self.ssm.zero_()

    monkeypatch.setattr(verify.DecodeStep, "load", forgetful)
    folder = published(tmp_path / "theirs", "mamba2")
    found = outcome(verified(capsys, folder, code=1))
    assert found["decoding"] is False and found["batch"] is found["pieces"] is True


def recorded(folder: Path, dtype: str = "float32") -> dict[str, object]:
    """What transformers' own class answers, as known_answers.json has it."""
    model = MambaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, 0, :40]
        written = model.generate(ids, max_new_tokens=10, do_sample=False)[0]
    return {
        "dtype": dtype, "prompt": PROMPT, "first_logits": logits.tolist(), "new_tokens": 10,
        "text": tokenizer.decode(written, skip_special_tokens=True),
    }  # fmt: skip


def test_recorded_answers(tmp_path: Path, capsys, monkeypatch) -> None:
    folder = published(tmp_path / "mamba-tiny-hf", "mamba")
    answer = recorded(folder)
    half = {**answer, "dtype": "float16"}
    monkeypatch.setattr(verify, "known_answers", lambda: {"o/mamba-tiny-hf": [answer, half]})
    found = verified(capsys, folder)["published"]
    assert [check["passed"] for check in found] == [True, True, None]
    assert "--dtype float16" in found[2]["words"]

    # another directory's name tells nothing: it is said which answers are meant
    moved = folder.rename(tmp_path / "moved")
    assert verified(capsys, moved)["published"][0]["passed"] is None
    found = verified(capsys, moved, "--answers-of", "o/mamba-tiny-hf")["published"]
    assert [check["passed"] for check in found[:2]] == [True, True]

    answer["first_logits"] = [x + 0.1 for x in answer["first_logits"]]
    answer["text"] = answer["text"][:-4] + "????"
    found = verified(capsys, moved, "--answers-of", "o/mamba-tiny-hf", code=1)["published"]
    assert [check["passed"] for check in found[:2]] == [False, False]
    assert cli.main(["verify", str(moved), "--answers-of", "o/other"]) == 2
    assert "there are o/mamba-tiny-hf" in capsys.readouterr().err


def test_sixteen_bit_answers_may_part_behind_the_first_words(tmp_path, capsys, monkeypatch) -> None:
    folder = published(tmp_path / "mamba-tiny-hf", "mamba")
    answer = {**recorded(folder, "bfloat16"), "first_logits": None}
    monkeypatch.setattr(verify, "known_answers", lambda: {"o/mamba-tiny-hf": [answer]})
    text = answer["text"]
    for told, passed in ((text, True), (text[:-3] + "???", True), (PROMPT + " ???", False)):
        answer["text"] = told
        code = 0 if passed else 1
        found = verified(capsys, folder, "--dtype", "bfloat16", code=code)["published"]
        assert [check["passed"] for check in found] == [passed]


def test_the_records_can_be_used() -> None:
    for name, answers in verify.known_answers().items():
        assert "/" in name
        for answer in answers:
            assert answer["dtype"] in ("float32", "float16", "bfloat16")
            assert answer["text"].startswith(answer["prompt"]) and answer["new_tokens"] > 0
    assert len(verify.known_answers()["state-spaces/mamba-130m-hf"][0]["first_logits"]) == 40


def test_bad_input_is_one_line(tmp_path: Path, capsys) -> None:
    ours = str(save_tiny(tmp_path / "ours"))
    for words, told in (
        (["--tokens", "5"], "--tokens 5 must be at least 48"),
        (["--against", ours], "names no model of transformers' layout"),
        (["--against", str(tmp_path / "none")], "none does not exist"),
    ):
        assert cli.main(["verify", ours, *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.network
def test_mamba_130m(capsys) -> None:
    found = verified(capsys, "state-spaces/mamba-130m-hf")
    assert found["transformers"][0]["passed"] and found["published"][0]["passed"]
