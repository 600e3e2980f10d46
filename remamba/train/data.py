"""Training files to token ids: TokenData holds documents, questions, responses and what to find."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remamba.errors import InputError
from remamba.train.chat import Chat
from remamba.train.encode import Encoder
from remamba.train.progress import amount, say
from remamba.train.ragged import Ragged, RaggedBuilder
from remamba.train.rows import Row, RowFile, data_files
from remamba.train.targets import AnswerFinder, answer_forms

DOCUMENT, PROMPT, TEXT = 0, 1, 2
KIND_NAMES = ("document", "prompt", "text")
NOWHERE = np.zeros((0, 2), dtype=np.int64)
CHUNK_TEXTS, CHUNK_CHARACTERS = 4000, 8_000_000


@dataclass
class TokenData:
    """Everything the files hold, as token ids. An item: a document, a prompt, a piece of text."""

    kinds: NDArray
    """(items,) DOCUMENT, PROMPT or TEXT."""
    contexts: Ragged
    """Tokens of each document or text; none for a prompt."""
    first_question: NDArray
    """(items + 1,) the questions of item i are first_question[i] up to first_question[i + 1]."""
    questions: Ragged
    """Tokens of each question, or of the whole prompt."""
    responses: Ragged
    """Tokens of each response, end-of-text included."""
    files: list[str]
    sources: NDArray
    """(items, 2) file and line."""
    answers: NDArray
    """(questions,) number of the answer that `finder` knows; -1: none."""
    evidence: Ragged
    """(spans, 2) of each question: tokens of its document, from and up to; none: no evidence."""
    finder: AnswerFinder | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Rows that were cut and skipped for their length; and those that were chats."""

    @property
    def num_items(self) -> int:
        return len(self.kinds)

    def lengths(self) -> NDArray:
        """(items,) tokens a batch must be wide enough for: of the context, or of a prompt."""
        lengths = self.contexts.lengths.copy()
        prompts = np.flatnonzero(self.kinds == PROMPT)
        asked = self.first_question[prompts]
        lengths[prompts] = self.questions.lengths[asked] + self.responses.lengths[asked]
        return lengths

    def where(self, item: int) -> str:
        """File and line of an item."""
        file, line = self.sources[item].tolist()
        return f"{self.files[file]}:{line}"

    def summary(self) -> str:
        """One line that says what was read."""
        lengths = np.sort(self.lengths())
        counts = np.bincount(self.kinds, minlength=len(KIND_NAMES)).tolist()
        items = [f"{n:,} {name}s" for n, name in zip(counts, KIND_NAMES, strict=True) if n]
        tokens = len(self.contexts.flat) + len(self.questions.flat) + len(self.responses.flat)
        text = (
            f"data: {', '.join(items)}, {self.questions.num_rows:,} questions and prompts, "
            f"{amount(tokens)} tokens; lengths {lengths[0]:,} to {lengths[-1]:,}, "
            f"median {lengths[len(lengths) // 2]:,}"
        )
        for name in ("cut", "skipped"):
            if self.counts.get(name):
                text += f"; {self.counts[name]:,} longer rows {name}"
        return text


def read_data(
    files: Sequence[str],
    tokenizer: Any,
    *,
    vocab_size: int,
    max_length: int,
    long_rows: str = "refuse",
    score_target: str | None = None,
) -> TokenData:
    """Reads and tokenizes training files.

    Args:
        files: of rows, see `rows.py`; or folders that `remamba data build` made.
        max_length: tokens of a document, or of a prompt with its response; texts are cut to pieces.
        long_rows: what to do with longer ones: refuse | cut | skip.
        score_target: "answer" or "evidence" prepares the search for it; None does not.

    Raises:
        InputError: a row cannot be used; the message begins with its file and line.
    """
    reader = _Reader(
        [RowFile(path, number, Chat(tokenizer)) for number, path in enumerate(data_files(files))],
        Encoder(tokenizer, vocab_size),
        max_length,
        long_rows,
        score_target,
    )
    started = said = time.monotonic()
    chunk: list[Row] = []
    texts = characters = 0
    for file in reader.files:
        for row in file:
            chunk.append(row)
            texts += 1 + 2 * len(row.questions)
            characters += len(row.context or row.questions[0].question)
            if texts >= CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
                reader.add(chunk)
                chunk, texts, characters = [], 0, 0
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    say(f"reading data: {len(reader.kinds):,} items, {said - started:.0f} s")
    reader.add(chunk)
    data = reader.build()
    if not data.num_items:
        raise InputError(
            f"no row of {', '.join(files)} is left: all are longer than --max-length {max_length}"
        )
    return data


class _Reader:
    """Grows the arrays of a TokenData, a chunk of rows at a time."""

    def __init__(
        self,
        files: Sequence[RowFile],
        encoder: Encoder,
        max_length: int,
        long_rows: str,
        score_target: str | None,
    ):
        self.files = files
        self.encoder, self.max_length = encoder, max_length
        self.long_rows, self.score_target = long_rows, score_target
        self.kinds: list[int] = []
        self.sources: list[tuple[int, int]] = []
        self.question_counts: list[int] = []
        self.answers: list[int] = []
        self.evidence = RaggedBuilder(np.int64)
        self.contexts = RaggedBuilder(encoder.dtype)
        self.questions = RaggedBuilder(encoder.dtype)
        self.responses = RaggedBuilder(encoder.dtype)
        self.answer_numbers: dict[tuple[str, ...], int] = {}
        self.counts = {"cut": 0, "skipped": 0}

    def add(self, rows: list[Row]) -> None:
        """Tokenizes rows and appends them."""
        contexts = self._contexts(rows)
        asked = [question for row in rows for question in row.questions]
        questions = iter(self.encoder.encode([q.question for q in asked]))
        responses = iter(self.encoder.encode([q.response for q in asked]))
        for row, (context, ends) in zip(rows, contexts, strict=True):
            pairs = [(next(questions), next(responses)) for _ in row.questions]
            if row.context is None:
                self._add_prompt(row, *pairs[0])
            elif row.questions:
                self._add_document(row, context, ends, pairs)
            else:
                self._add_text(row, context)

    def _contexts(self, rows: list[Row]) -> list[tuple[NDArray, NDArray | None]]:
        """Ids of each row's context, and the ends of its tokens where evidence is to be found."""
        encoded: list[tuple[NDArray, NDArray | None]] = [(self.encoder.prefix[:0], None)] * len(
            rows
        )
        plain: list[int] = []
        located: list[int] = []
        for i, row in enumerate(rows):
            if row.context is not None:
                wanted = self.score_target == "evidence" and any(q.evidence for q in row.questions)
                (located if wanted else plain).append(i)
        texts = [rows[i].context or "" for i in plain]
        for i, ids in zip(plain, self.encoder.encode(texts), strict=True):
            encoded[i] = (ids, None)
        texts = [rows[i].context or "" for i in located]
        for i, pair in zip(located, self.encoder.encode_with_ends(texts), strict=True):
            encoded[i] = pair
        return encoded

    def _add_document(
        self,
        row: Row,
        context: NDArray,
        ends: NDArray | None,
        pairs: list[tuple[NDArray, NDArray]],
    ) -> None:
        opening = len(context)
        context = self.encoder.opened(context)
        opening = len(context) - opening
        longest_pair = max(len(q) + len(r) + 1 for q, r in pairs)
        if longest_pair > self.max_length:
            if self._is_skipped(row, "question with its response", longest_pair, can_cut=False):
                return
        elif len(context) > self.max_length:
            if self._is_skipped(row, "document", len(context)):
                return
            context = context[: self.max_length]
        evidence = [self._evidence(row, number, ends, opening, len(context))
                    for number in range(len(pairs))]  # fmt: skip
        self._append(row, DOCUMENT, context, pairs, evidence)

    def _add_prompt(self, row: Row, prompt: NDArray, response: NDArray) -> None:
        prompt = self.encoder.opened(prompt)
        room = self.max_length - len(response) - 1
        if len(prompt) > room:
            length = len(prompt) + len(response) + 1
            if self._is_skipped(row, "prompt with its response", length, can_cut=room >= 2):
                return
            # the middle goes: instructions stand at either end
            prompt = np.concatenate(
                [prompt[: room // 2], prompt[len(prompt) - (room - room // 2) :]]
            )
        self._append(row, PROMPT, prompt[:0], [(prompt, response)], [NOWHERE])

    def _add_text(self, row: Row, text: NDArray) -> None:
        text = np.concatenate([self.encoder.opened(text), self.encoder.eos])
        for start in range(0, len(text), self.max_length):
            piece = text[start : start + self.max_length]
            if len(piece) > 1:
                self._append(row, TEXT, piece, [], [])

    def _append(
        self,
        row: Row,
        kind: int,
        context: NDArray,
        pairs: list[tuple[NDArray, NDArray]],
        evidence: list[NDArray],
    ) -> None:
        self.kinds.append(kind)
        self.sources.append((row.file, row.line))
        self.contexts.extend([context])
        self.question_counts.append(len(pairs))
        self.questions.extend([question for question, _ in pairs])
        self.responses.extend(
            [np.concatenate([response, self.encoder.eos]) for _, response in pairs]
        )
        self.evidence.extend(evidence)
        for question in row.questions:
            number = -1
            if self.score_target is not None:
                number = self.answer_numbers.setdefault(question.answers, len(self.answer_numbers))
            self.answers.append(number)

    def _is_skipped(self, row: Row, what: str, length: int, can_cut: bool = True) -> bool:
        """True: leave the row out; False: cut it."""
        if self.long_rows == "skip":
            self.counts["skipped"] += 1
            return True
        if self.long_rows == "cut" and can_cut:
            self.counts["cut"] += 1
            return False
        mend = "--long-rows cut or skip" if can_cut else "--long-rows skip"
        raise InputError(
            f"{self.files[row.file].path}:{row.line}: the {what} has {length:,} tokens, more than "
            f"--max-length {self.max_length}; raise that, or choose {mend}"
        )

    def _evidence(
        self, row: Row, number: int, ends: NDArray | None, opening: int, length: int
    ) -> NDArray:
        """(spans, 2) tokens of the evidence that the document (still) holds.

        Args:
            ends: the character behind each of its tokens; None: not looked for.
            opening: tokens that were put before it.
            length: tokens of it that are left, the opening among them.
        """
        evidence = row.questions[number].evidence
        if not evidence or ends is None:
            return NOWHERE
        spans = np.array(evidence)
        first = np.searchsorted(ends, spans[:, 0], side="right")  # ends behind the first character
        last = np.searchsorted(ends, spans[:, 1])  # ends behind the last, or with it
        spans = np.stack([first, last + 1], axis=1) + opening
        return spans[spans[:, 1] <= length]

    def build(self) -> TokenData:
        first_question = np.zeros(len(self.kinds) + 1, dtype=np.int64)
        np.cumsum(self.question_counts, out=first_question[1:])
        self.counts["chats"] = sum(file.chat.rows for file in self.files if file.chat is not None)
        return TokenData(
            kinds=np.array(self.kinds, dtype=np.uint8),
            contexts=self.contexts.build(),
            first_question=first_question,
            questions=self.questions.build(),
            responses=self.responses.build(),
            files=[file.path for file in self.files],
            sources=np.array(self.sources, dtype=np.int64).reshape(-1, 2),
            answers=np.array(self.answers, dtype=np.int64),
            evidence=self.evidence.build(),
            finder=self._finder() if self.score_target is not None else None,
            hashes={file.path: file.sha256 for file in self.files},
            counts=self.counts,
        )

    def _finder(self) -> AnswerFinder:
        """Tokenizes the forms of every answer once."""
        groups = [
            list(dict.fromkeys(form for answer in answers for form in answer_forms(answer)))
            for answers in self.answer_numbers
        ]
        patterns = RaggedBuilder(self.encoder.dtype)
        counts = np.zeros(len(groups) + 1, dtype=np.int64)
        for low in range(0, len(groups), CHUNK_TEXTS):
            part = groups[low : low + CHUNK_TEXTS]
            encoded = iter(self.encoder.encode([form for forms in part for form in forms]))
            for number, forms in enumerate(part, low):
                found = {ids.tobytes(): ids for ids in (next(encoded) for _ in forms) if len(ids)}
                patterns.extend(found.values())
                counts[number + 1] = len(found)
        return AnswerFinder(patterns.build(), np.cumsum(counts), *self.encoder.word_edges())
