"""Text files, a model's tokenizer, and text to tokens and back: special tokens, chat templates.

Nothing else in the package adds, drops or skips a special token, or writes a chat: training, asking
and evaluation come here.
"""

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
CHAT_TEMPLATE_FILE = "chat_template.jinja"
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
        tokenizer = _tokenizer_class(Path(place)).from_pretrained(place)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{file} cannot be read as a tokenizer ({_one_line(error)})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{file} gives no fast tokenizer; save it as tokenizer.json")
    _check_fits(file, tokenizer.get_vocab(), vocab_size)
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """The class that reads a tokenizer's files.

    AutoTokenizer would find the same one, and imports every model's classes to find it.
    """
    import transformers

    try:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        kind = values["tokenizer_class"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = ""  # what is wrong there, AutoTokenizer tells
    if kind in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


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
            with a bos token does so here; a question behind a document gets none. A text that
            begins with the bos as it stands, as a chat template may write it, gets no second one.

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
    if opening and is_opened(opening, ids):
        ids, offsets = ids[len(opening) :], offsets[len(opening) :]
    return Encoded([*opening, *ids], [*[(0, 0)] * len(opening), *offsets])


def encode_batch(tokenizer: Any, texts: Sequence[str], *, has_offsets: bool = False) -> list[Any]:
    """The `tokenizers.Encoding` of each text, with nothing added; offsets take more time."""
    backend = tokenizer.backend_tokenizer
    each = backend.encode_batch if has_offsets else backend.encode_batch_fast
    return each(texts, add_special_tokens=False)


# special tokens: what stands before a prompt, behind an answer, and is left out of a text


def opening_tokens(tokenizer: Any) -> list[int]:
    """What stands before a prompt: the bos token of a tokenizer that opens its texts with it."""
    if tokenizer.bos_token_id is None:
        return []
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def is_opened(opening: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether tokens begin with what stands before a prompt, so that it is not put there again."""
    return list(ids[: len(opening)]) == list(opening)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, as `generate` knows them; else the tokenizer's own."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def settle_end(model: Any, tokenizer: Any) -> None:
    """Let a model's texts end with its tokenizer's end token too, as training ends its answers."""
    ends = end_tokens(model, tokenizer)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        every = [*sorted(ends), tokenizer.eos_token_id]
        model.config.eos_token_id = model.generation_config.eos_token_id = every


def script_tokens(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """The tokens of a text as the benchmarks' own scripts count them.

    Args:
        special: with the tokens that the tokenizer adds around a text, on either side.
    """
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens without special ones, as the benchmarks' own scripts decode it."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def _plain_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens without special ones, every space as it was."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# chat templates


_PLAIN_CHAT = (
    "{%- for message in messages -%}"
    "{%- if loop.index0 and message['role'] != 'assistant'"
    " and messages[loop.index0 - 1]['role'] != 'system' -%}"
    "{{ raise_exception('one question, with or without a system message before it') }}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- else -%}{{ ('' if loop.first else '\\n\\n') + message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
)


def plain_chat_template(tokenizer: Any) -> str:
    """The chat template of a tokenizer that has none, as training writes rows of messages then.

    One question, with or without a system message before it, as they stand, a blank line between
    them; then the answer and the end of the text; the bos first, where the tokenizer opens texts
    with one.
    """
    return ("{{- bos_token -}}" if opening_tokens(tokenizer) else "") + _PLAIN_CHAT


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer says how a chat is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(
    tokenizer: Any, messages: Sequence[dict[str, str]], *, where: str, is_prompt: bool = True
) -> str:
    """Messages as the tokenizer's chat template writes them, or the plain one where it has none.

    Special tokens stand in it as text, a bos among them, and `encode` reads them as such.

    Args:
        where: what messages of errors begin with: the row, or the benchmark's question.
        is_prompt: an answer is to follow, so the template opens its turn.

    Raises:
        InputError: the template refuses these messages.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=None if has_chat_template(tokenizer) else plain_chat_template(tokenizer),
            tokenize=False,
            add_generation_prompt=is_prompt,
        )
    except Exception as error:  # jinja's own, and whatever a template raises
        raise InputError(
            f"{where}: the tokenizer's chat template refuses these messages "
            f"({' '.join(str(error).split())[:120]})"
        ) from error


def settle_chat_template(tokenizer: Any, *, has_chats: bool) -> str:
    """One line that says how a chat is written to the model that was trained with a tokenizer.

    A template is carried over. Where there is none and the rows were chats, the tokenizer gets the
    one they were written by, so that `apply_chat_template` gives what the model was trained on. A
    model that was trained on no chats gets none, since none would be true.
    """
    plain = plain_chat_template(tokenizer)
    if not has_chat_template(tokenizer) and has_chats:
        tokenizer.chat_template = plain
    if not has_chat_template(tokenizer):
        return (
            "no chat template is written, since the base has none and no row is a chat; questions "
            "are asked by question_template"
        )
    if tokenizer.chat_template == plain:
        return (
            "the chat template is plain, as the base has none: a system message, a blank line, one "
            "question, and its answer, as the rows of messages were read"
        )
    return "the chat template is the base's own"


def has_chat_template_file(folder: Path) -> bool:
    """Whether the tokenizer's files in a directory have a chat template."""
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        return True
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(values.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def decode_with_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and the characters that each stands for.

    Used where only the tokens were stored. Text that encodes to the same tokens again, as it nearly
    always does, takes the tokenizer's own offsets; else they are found by decoding step by step.
    """
    text = _plain_text(tokenizer, ids)
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
        return _plain_text(self.tokenizer, self._ids[start:])

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
