"""Text files, a model's tokenizer, and text to tokens and back: where they lie, growing text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.pretrained import locate

UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a character whose last bytes are still to come."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""The first of these that a directory holds has its tokenizer's vocabulary."""
VOCABULARIES = "tokenizer.json, tokenizer.model or vocab.json"


def read_text(path: str | Path, what: str = "document") -> str:
    """The text of a file, without a byte order mark, its lines ended as on Unix.

    Args:
        what: what messages call the text.

    Raises:
        InputError: there is no such file, it cannot be read, is empty, or is not UTF-8 text.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # also: ~ leads nowhere, a NUL
        raise InputError(
            f"the {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}; "
            "check the path"
        ) from error
    return text_of_bytes(data, str(path), what)


def text_of_bytes(data: bytes, name: str, what: str = "document") -> str:
    """The text that a file named `name` holds; see `read_text`.

    Raises:
        InputError: the bytes are empty, or are not UTF-8 text.
    """
    if 0 in data:
        raise InputError(
            f"{name} is a binary file (byte {data.index(0)} is 0), not text; extract its text first"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{name} is empty; the {what} needs at least one word")
    return text.replace("\r\n", "\n")


def load_tokenizer(name: str | Path, vocab_size: int) -> Any:
    """The fast tokenizer that lies beside a model, for every command and for training.

    Args:
        name: a model directory, a hub name, or the embedded model's.
        vocab_size: how many tokens the model knows.

    Raises:
        InputError: there is none, it cannot be read, or it has tokens that the model lacks.
    """
    from transformers import AutoTokenizer

    place = locate(name)
    file: str | Path = place
    if Path(place).is_dir():
        found = check_vocabulary(Path(place), vocab_size)
        if found is None:
            raise InputError(
                f"{place} holds no {VOCABULARIES}; copy the tokenizer files of its base model there"
            )
        file = found
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{file} cannot be read as a tokenizer ({_one_line(error)})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{file} gives no fast tokenizer; save it as tokenizer.json")
    _check_fits(file, tokenizer.get_vocab(), vocab_size)
    return tokenizer


def check_vocabulary(folder: Path, vocab_size: int) -> Path | None:
    """The file in a directory that has its tokenizer's vocabulary; None when there is none.

    Raises:
        InputError: it cannot be read, or has tokens that the model lacks.
    """
    file = next((folder / name for name in VOCABULARY_FILES if (folder / name).is_file()), None)
    if file is None or file.name == "tokenizer.model":
        return file
    try:
        if file.name == "tokenizer.json":
            from tokenizers import Tokenizer

            tokens = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
        else:
            tokens = json.loads(file.read_text(encoding="utf-8"))
        _check_fits(file, tokens, vocab_size)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{file} cannot be read as a tokenizer ({_one_line(error)})") from error
    return file


def _check_fits(file: str | Path, tokens: dict[str, int], vocab_size: int) -> None:
    count = max(tokens.values(), default=-1) + 1
    if count > vocab_size:
        raise InputError(
            f"{file} has {count} tokens, the model's vocabulary {vocab_size}; "
            "give the model's own tokenizer"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Encoded(NamedTuple):
    """A text's tokens, and the characters that each of them stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """(start, stop) in the text; empty ranges for tokens that are no part of it."""


def encode(tokenizer: Any, text: str, *, begins: bool = True) -> Encoded:
    """The tokens of a text, as training writes them: nothing is added but a leading bos.

    Args:
        tokenizer: a fast transformers tokenizer.
        begins: the text stands at the start of a prompt, so that a tokenizer that opens its texts
            with a bos token does so here; a question behind a document gets none.

    Raises:
        InputError: the tokenizer does not tell where its tokens lie.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'the model')} is not a fast one "
            "(a tokenizer.json), so it cannot tell where its tokens lie; convert it first"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    opening = opening_tokens(tokenizer) if begins else []
    return Encoded([*opening, *ids], [*[(0, 0)] * len(opening), *offsets])


def opening_tokens(tokenizer: Any) -> list[int]:
    """What stands before a prompt: the bos token of a tokenizer that opens its texts with it."""
    if tokenizer.bos_token_id is None:
        return []
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def decode_with_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and the characters that each stands for.

    Used where only the tokens were stored. Text that encodes to the same tokens again, as it nearly
    always does, takes the tokenizer's own offsets; else they are found by decoding step by step.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    again = encode(tokenizer, text)
    if again.ids == list(ids):
        return text, again.offsets
    special = set(tokenizer.all_special_ids)
    growing, offsets = GrowingText(tokenizer), []
    waiting: list[int] = []  # tokens with the first bytes of a character
    for i, token_id in enumerate(ids):
        start = len(growing.text)
        growing.push(token_id)
        place = (start, len(growing.text))
        offsets.append(place)
        if start < place[1]:
            for earlier in waiting:
                offsets[earlier] = place
            waiting = []
        elif token_id not in special:
            waiting.append(i)
    growing.finish()
    return growing.text, offsets


class GrowingText:
    """Text that grows by one token at a time and ends before a stop string.

    What `push` returns is final: no half of a character that takes several tokens, and nothing
    that may turn out to be the start of a stop string. All pieces joined are `text`.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.text = ""
        """All that was returned so far."""
        self.stopped = False
        """A stop string was met."""
        self._ids: list[int] = []
        # Tokens from _begin on are open: their text may still change. Decoders treat the space of
        # a first token in a way of their own, so open tokens are decoded behind a few that are
        # final, those from _context on, whose text is _before.
        self._context, self._begin = 0, 0
        self._before = ""
        # characters of the open tokens' text that went on to _held
        self._passed = 0
        # final text that is held back, since a stop string may begin in it
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that has become final with this token; "" when it must wait."""
        self._ids.append(token_id)
        opened = self._decode(self._context)[len(self._before) :]
        finished = opened.rstrip(UNFINISHED)
        piece = finished[self._passed :]
        if opened and finished == opened:
            self._context, self._begin = self._begin, len(self._ids)
            self._before = self._decode(self._context)
            self._passed = 0
        else:
            self._passed = max(self._passed, len(finished))
        return self._release(piece)

    def finish(self) -> str:
        """What was held back, now that no token will follow; "" after a stop string."""
        if self.stopped:
            return ""
        rest = self._held + self._decode(self._context)[len(self._before) + self._passed :]
        self._held, self._context, self._before, self._passed = "", len(self._ids), "", 0
        self._begin = self._context
        self.text += rest
        return rest

    def _decode(self, start: int) -> str:
        return self.tokenizer.decode(
            self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _release(self, piece: str) -> str:
        """Hold `piece` back as far as a stop string may begin in it; cut at a whole one."""
        if self.stopped:
            return ""
        held = self._held + piece
        met = [place for stop in self.stop if (place := held.find(stop)) >= 0]
        if met:
            self.stopped, free, self._held = True, held[: min(met)], ""
        else:
            waiting = max((_overlap(held, stop) for stop in self.stop), default=0)
            free, self._held = held[: len(held) - waiting], held[len(held) - waiting :]
        self.text += free
        return free


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
