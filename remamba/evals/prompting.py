"""From a question of a benchmark to the text that a model reads: what is cut, chat wrapper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.evals import leval, longbench
from remamba.evals.items import Item, Prompt
from remamba.methods.passages import Passages, last, middle, without_middle
from remamba.text import chat_text, encode, has_chat_template, script_tokens, text_of

SHORTENINGS = {
    "none": "",
    "last": "only the last {} tokens of a document are read; ",
    "middle": "only {} tokens of a document are read, its first and last half of them; ",
    "bm25": "only {} tokens of a document are read, the paragraphs that BM25 ranks first (of those "
    "that are longer than that, sentences); ",
}
"""How a document may be shortened first, in words; the braces are for the number of tokens."""
RESERVED = {("authors", "longbench-e"): 500, ("authors", "leval"): 500, ("official", "leval"): 512}
"""Tokens of the maximum length that are left for the answer, by protocol and task."""


class Text(NamedTuple):
    """What a model reads, and where its document and its question begin if that is known."""

    text: str
    split: int | None
    """Characters before the part behind the document; None when the cut lost the place."""
    start: int = 0
    """Characters before the document: an instruction; 0 too when the cut lost the place."""


@dataclass(frozen=True)
class Prompting:
    """How the questions of a task become texts.

    Args:
        task: longbench-e or leval.
        protocol: "authors": the whole prompt is cut in its middle to the maximum length minus 500.
            "official": LongBench cuts to the maximum length itself and wraps chat models' prompts;
            L-Eval cuts words off the document's end (codeU: its start).
        max_length: in tokens, answer included where the protocol reserves a place for it.
        shorten: how a document is shortened first, a name of SHORTENINGS.
        shorten_tokens: how many of its tokens that leaves.

    Raises:
        InputError: a value is outside its range, or the maximum length leaves nothing for the
            prompt.
    """

    tokenizer: Any
    task: str
    protocol: str = "authors"
    max_length: int = 6000
    shorten: str = "none"
    shorten_tokens: int = 2000

    def __post_init__(self) -> None:
        if self.limit < 2:
            reserved = self.max_length - self.limit
            raise InputError(
                f"--max-length {self.max_length} leaves no prompt: {reserved} tokens are the "
                f"answer's; give at least {reserved + 2}"
            )
        check_shorten(self.shorten, self.shorten_tokens)

    @property
    def limit(self) -> int:
        """Most tokens of a prompt (of a document, in L-Eval's own protocol) before decoding."""
        return self.max_length - RESERVED.get((self.protocol, self.task), 0)

    def new_tokens(self, dataset: str) -> int:
        """Most tokens of an answer."""
        if self.task == "leval":
            return leval.NEW_TOKENS[self.protocol]
        return longbench.new_tokens()[dataset]

    def describe(self) -> str:
        """The protocol in words."""
        if self.task == "leval" and self.protocol == "official":
            cut = f"words are cut off documents of more than {self.limit} tokens"
        else:
            half = self.limit // 2
            cut = (
                f"prompts of more than {self.limit} tokens keep their first and last {half}, "
                "decoded, joined and encoded again"
            )
        chat = self.protocol == "official" and self.task == "longbench-e"
        first = SHORTENINGS[self.shorten].format(self.shorten_tokens)
        return f"{first}{cut}; {'chat template where there is one' if chat else 'no chat wrapper'}"

    def text(self, dataset: str, item: Item) -> Text:
        """What a model reads of a question."""
        prompt = item.prompt._replace(document=self._shortened(item))
        if self.protocol == "official" and self.task == "leval":
            document = cut_words(
                self.tokenizer, prompt.document, self.limit, from_left=dataset == "codeU"
            )
            return _whole(prompt._replace(document=document))
        special = self.task == "longbench-e"
        text = cut_middle(self.tokenizer, prompt.text, self.limit, special=special)
        found = _whole(prompt) if text == prompt.text else self._find_question(text, prompt)
        if self.protocol == "official" and dataset not in longbench.FEW_SHOT:
            return self._wrapped(found)
        return found

    def _find_question(self, text: str, prompt: Prompt) -> Text:
        if not prompt.after.strip() or not text.endswith(prompt.after):
            return Text(text, None)
        start = len(prompt.before) if text.startswith(prompt.before) else 0
        return Text(text, len(text) - len(prompt.after), start)

    def _wrapped(self, found: Text) -> Text:
        if not has_chat_template(self.tokenizer):
            return found
        message = {"role": "user", "content": found.text}
        return Text(chat_text(self.tokenizer, [message], where=self.task), None)

    def _shortened(self, item: Item) -> str:
        document, count = item.prompt.document, self.shorten_tokens
        if self.shorten == "none":
            return document
        _, offsets = encode(self.tokenizer, document, begins=False)
        if self.shorten == "last":
            return last(document, offsets, count).text
        if self.shorten == "middle":
            return middle(document, offsets, count).text
        query = item.question if item.question.strip() else item.prompt.after
        return Passages(document, offsets, count).best(query).text


def check_shorten(name: str, count: int) -> None:
    """Refuse an unknown way to shorten a document, and a number of tokens that leaves nothing.

    Raises:
        InputError: see above.
    """
    if name == "truncate":
        raise InputError("--shorten truncate is now called last; give --shorten last")
    if name not in SHORTENINGS:
        raise InputError(f"--shorten {name}: choose of {', '.join(SHORTENINGS)}")
    least = 2 if name == "middle" else 1
    if count < least:
        raise InputError(f"--shorten-tokens {count} must be at least {least}")


def _whole(prompt: Prompt) -> Text:
    split = len(prompt.before) + len(prompt.document)
    return Text(prompt.text, split if prompt.after.strip() else None, len(prompt.before))


def cut_middle(tokenizer: Any, text: str, limit: int, *, special: bool = True) -> str:
    """The text, or its first and last `limit` // 2 tokens, each decoded by itself, joined.

    Encoded again, the joint may give a few tokens more or fewer.

    Args:
        special: count the tokens that the tokenizer adds around a text.
    """
    ids = script_tokens(tokenizer, text, special=special)
    kept = without_middle(ids, limit)
    if kept is ids:
        return text
    half = limit // 2
    parts = (kept[:half], kept[half:])
    return "".join(text_of(tokenizer, part) for part in parts)


def cut_words(tokenizer: Any, document: str, limit: int, *, from_left: bool) -> str:
    """L-Eval's own cut: `limit` words, then 250 fewer at a time, until they are `limit` tokens."""
    count = 0
    while len(script_tokens(tokenizer, document)) > limit and count < limit:
        words = document.split(" ")
        size = limit - count
        document = " ".join(words[-size:] if from_left else words[:size])
        count += 250
    return document
