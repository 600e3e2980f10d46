"""Text to tokens and back: whole characters, stop strings, offsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remamba.errors import InputError
from remamba.text import (
    GrowingText,
    decode_with_offsets,
    encode,
    load_tokenizer,
    opening_tokens,
)
from tests.tiny import TEXT, tiny_tokenizer


def test_growing_text_never_splits_a_character() -> None:
    tokenizer = tiny_tokenizer()
    text = "naïve 🙂 東京 Zürich 👩‍👩‍👧 ende é"
    ids = encode(tokenizer, text).ids
    assert len(ids) > len(text.encode()) / 2  # most characters take several tokens
    growing = GrowingText(tokenizer)
    pieces = [growing.push(i) for i in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + growing.finish() == text == growing.text


def test_growing_text_ends_with_what_it_has() -> None:
    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, "a🙂").ids[:-1]
    growing = GrowingText(tokenizer)
    assert "".join(growing.push(i) for i in ids) == "a"
    assert growing.finish() == tokenizer.decode(ids)[1:]
    assert growing.text == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("in Par",), "Tom lives "),
        (("Par", "lives in P"), "Tom "),
        (("s.", "Paris?"), "Tom lives in Pari"),
        (("s.", "is", "ri"), "Tom lives in Pa"),  # two in one token: the first counts
        (("T",), ""),
        (("Paris.!",), "Tom lives in Paris."),
        (("nowhere",), "Tom lives in Paris."),
        (("ss", "is.."), "Tom lives in Paris."),
    ],
    ids=str,
)
def test_growing_text_holds_stops_back(stop: tuple[str, ...], expected: str) -> None:
    tokenizer = tiny_tokenizer()
    growing = GrowingText(tokenizer, stop)
    shown = ""
    for token in encode(tokenizer, "Tom lives in Paris.").ids:
        shown += growing.push(token)
        assert expected.startswith(shown)
    shown += growing.finish()
    assert shown == growing.text == expected
    assert growing.stopped == (expected != "Tom lives in Paris.")


def test_offsets_of_tokens_alone() -> None:
    """Where a text's own tokens come back, and where they do not."""
    tokenizer = tiny_tokenizer()
    encoded = encode(tokenizer, TEXT)
    assert decode_with_offsets(tokenizer, encoded.ids) == (TEXT, encoded.offsets)
    bytewise = [tokenizer.convert_tokens_to_ids(c) for c in "Paris"]
    text, offsets = decode_with_offsets(tokenizer, bytewise)
    assert text == "Paris"
    assert offsets == [(i, i + 1) for i in range(5)]
    smile = encode(tokenizer, "a🙂b").ids
    bytewise = [smile[0], *map(tokenizer.convert_tokens_to_ids, "ðŁĻĤ"), 0, smile[-1]]
    text, offsets = decode_with_offsets(tokenizer, bytewise)
    assert text == "a🙂b"
    assert offsets == [(0, 1), *[(1, 2)] * 4, (2, 2), (2, 3)]


def test_bos_opens_a_prompt_but_no_question() -> None:
    class WithBos:
        is_fast, bos_token_id = True, 7

        def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
            ids = [7, 1, 2] if add_special_tokens else [1, 2]
            return {"input_ids": ids, "offset_mapping": [(0, 1), (1, 2)]}

    assert opening_tokens(WithBos()) == [7]
    assert opening_tokens(tiny_tokenizer()) == []
    assert encode(WithBos(), "ab") == ([7, 1, 2], [(0, 0), (0, 1), (1, 2)])
    assert encode(WithBos(), "ab", begins=False) == ([1, 2], [(0, 1), (1, 2)])


def test_tokenizer_beside_a_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, len(tokenizer)).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(InputError, match=r"tokenizer.json has 340 tokens, .* vocabulary 339"):
        load_tokenizer(tmp_path, len(tokenizer) - 1)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (None, "", "holds no tokenizer.json, tokenizer.model or vocab.json"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read as a tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json cannot be read as a tokenizer"),
        ("vocab.json", "[1]", "vocab.json cannot be read as a tokenizer"),
        ("vocab.json", json.dumps({"a": 0, "b": 9}), "vocab.json has 10 tokens"),
        ("tokenizer.model", "nothing", "tokenizer.model"),
    ],
)
def test_tokenizers_that_cannot_be_used(
    tmp_path: Path, file: str | None, content: str, said: str
) -> None:
    if file is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, 9)
    assert said in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
