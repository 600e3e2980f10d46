"""Encoder: a tokenizer as training needs it: batches of texts to arrays of ids, nothing added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remamba.errors import InputError
from remamba.text import encode_batch, is_opened, opening_tokens

AT_ONCE = 4_000_000
"""Characters that are encoded together: what the tokenizer says of a token takes 100 bytes."""


class Encoder:
    """Texts to token ids.

    Nothing is added to a text; `opened` puts before a prompt what the tokenizer does (its bos, if
    it adds one), and `eos` ends a response.

    Args:
        tokenizer: a fast transformers tokenizer, as `load_tokenizer` gives it.
        vocab_size: rows of the model's embedding.
    """

    def __init__(self, tokenizer: Any, vocab_size: int):
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-text token, so answers "
                "could not end; set its eos_token"
            )
        self.eos = np.array([tokenizer.eos_token_id], dtype=self.dtype)
        self.prefix = np.array(opening_tokens(tokenizer), dtype=self.dtype)

    def encode(self, texts: list[str]) -> list[NDArray]:
        """The ids of each text."""
        arrays: list[NDArray] = []
        for low, high in _pieces(texts):
            arrays += [self._array(e.ids) for e in encode_batch(self.tokenizer, texts[low:high])]
        return arrays

    def encode_with_ends(self, texts: list[str]) -> list[tuple[NDArray, NDArray]]:
        """The ids of each text, and the character after each token."""
        if not texts:
            return []
        found = encode_batch(self.tokenizer, texts, has_offsets=True)
        return [
            (self._array(e.ids), np.array([stop for _, stop in e.offsets], dtype=np.int64))
            for e in found
        ]

    def opened(self, ids: NDArray) -> NDArray:
        """The ids of a prompt or a text behind what stands before it, where it does not yet."""
        is_new = not is_opened(self.prefix.tolist(), ids[: len(self.prefix)].tolist())
        return np.concatenate([self.prefix, ids]) if is_new else ids

    def _array(self, ids: list[int]) -> NDArray:
        array = np.array(ids, dtype=np.int64)
        if len(array) and array.max() >= self.vocab_size:
            raise InputError(
                f"the tokenizer of {self.tokenizer.name_or_path} gives token {array.max()}, but "
                f"the model knows {self.vocab_size}: they do not belong together"
            )
        return array.astype(self.dtype)

    def word_edges(self) -> tuple[NDArray, NDArray]:
        """Which tokens begin with a letter or digit, and which end with one: two (v,) bools.

        A token whose own text begins with a space begins with no letter.
        """
        size = max(len(self.tokenizer), self.vocab_size)
        begins, ends = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        ids = list(range(len(self.tokenizer)))
        names = self.tokenizer.convert_ids_to_tokens(ids)
        special = set(self.tokenizer.all_special_ids)
        texts = self.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        for i, (name, text) in enumerate(zip(names, texts, strict=True)):
            if name is None or not text or i in special:
                continue
            # some decoders swallow a leading space, which the token's name still shows
            begins[i] = text[0].isalnum() and not name.startswith((" ", "Ġ", "▁"))
            ends[i] = text[-1].isalnum()
        return begins, ends


def _pieces(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Runs of texts of about AT_ONCE characters together: from and up to."""
    low = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= AT_ONCE:
            yield low, i + 1
            low, size = i + 1, 0
    if low < len(texts):
        yield low, len(texts)
