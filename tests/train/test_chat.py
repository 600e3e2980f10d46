"""What training leaves beside a model: its chat template, or why there is none; how texts end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from remamba import Reader, ReMambaConfig
from remamba.train.config import TrainArgs
from remamba.train.lora import merge
from remamba.train.run import train
from tests.train.toy import make_tokenizer, save_base, write_documents, write_rows

OWN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
CHAT = {
    "messages": [
        {"role": "user", "content": " key1"},
        {"role": "assistant", "content": " val1"},
    ]
}


def options(base: str, data: str, output: Path, **more: Any) -> TrainArgs:
    return TrainArgs(
        base=base, data=data, output=str(output), device="cpu", max_steps=1, batch_size=2,
        warmup_steps=0, save_steps=0, length=(1.0, 1.0), keep_ratio=(0.3, 0.3),
        check_gradients=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "is_chat", "said"),
    [
        (OWN, False, "the chat template is the base's own"),
        (OWN, True, "the chat template is the base's own"),
        (None, True, "the chat template is plain, as the base has none"),
        (None, False, "no chat template is written, since the base has none and no row is a chat"),
    ],
    ids=["own, documents", "own, chats", "none, chats", "none, documents"],
)
def test_a_run_carries_its_template_over_or_says_why_not(
    template: str | None,
    is_chat: bool,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = save_base(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    data = (
        write_rows(tmp_path / "chat.jsonl", [CHAT] * 4)
        if is_chat
        else write_documents(tmp_path / "d.jsonl", count=4)
    )
    # what comes from the cache knows of the chats too
    cache = {"data_cache": str(tmp_path / "cache")}
    for number in range(2):
        train(options(base, data, tmp_path / f"run{number}", **cache))
        assert said in capsys.readouterr().err
        record = json.loads((tmp_path / f"run{number}" / "train.json").read_text())
        assert record["chat_template"].startswith(said)
    trained = AutoTokenizer.from_pretrained(tmp_path / "run1")
    assert bool(trained.chat_template) == bool(template or is_chat)
    if template:
        assert trained.chat_template == template
    elif is_chat:
        text = trained.apply_chat_template(CHAT["messages"], tokenize=False)
        assert text == " key1 val1<|end|>"


@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_a_trained_models_texts_end_as_its_answers_did(parameters: str, tmp_path: Path) -> None:
    """A base whose configuration names another end than its tokenizer would never stop."""
    tokenizer = make_tokenizer()
    base = save_base(tmp_path / "base")
    config = ReMambaConfig.from_pretrained(base)
    config.eos_token_id = 7
    config.save_pretrained(base)
    (tmp_path / "base" / "generation_config.json").unlink(missing_ok=True)
    data = write_documents(tmp_path / "d.jsonl", count=4)
    more = {"parameters": parameters, "method": "mamba"} if parameters == "lora" else {}
    output = tmp_path / "run"
    train(options(base, data, output, **more))
    if parameters == "lora":
        merge(output, tmp_path / "merged")
        output = tmp_path / "merged"
    reader = Reader(output, device="cpu")
    assert reader._ready_engine().eos == {7, tokenizer.eos_token_id}
