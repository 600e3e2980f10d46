"""Every planted question asked under every condition; a kill loses no answer."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from lab.asked.asking import Question, answer, read_documents
from lab.asked.conditions import (
    BM25,
    DROP20,
    DROPPED,
    LAST,
    MIDDLE,
    NOBODY,
    ORACLE,
    WHOLE,
    Condition,
)
from lab.asked.evidence import evidence_ranks, token_spans
from lab.asked.tasks import PlantedDocument, PlantedQuestion, answer_spans
from remamba.engine.answer import Answer
from remamba.engine.document import Document
from remamba.engine.reader import Reader
from remamba.errors import InputError
from remamba.evals.predictions import FOLDER, PredictionFile
from remamba.evals.runner import say
from remamba.methods.passages import Passages, split_chunks, without_middle
from remamba.methods.plain import Plain
from remamba.text import encode, opening_tokens, text_of

TIMES_FILE = "times.jsonl"
WARM_UP = 400
"""Characters that a model reads first, so that no group's time holds what happens only once."""
POSITIONS = {"cpu": 16_384, "cuda": 131_072}
"""Most tokens of documents that are in memory together, by device."""


@dataclass
class Encoded:
    """A document and its questions as one tokenizer reads them."""

    source: PlantedDocument
    ids: list[int]
    offsets: list[tuple[int, int]]
    opening: int
    """How many of the tokens stand before the text (a bos)."""
    question_tokens: list[int]
    """How many each question has."""
    evidence: list[list[tuple[int, int]]]
    """Token spans of each question."""
    values: list[list[tuple[int, int]]]
    """Token spans of the answers in the evidence."""
    _passages: dict[int, Passages] = field(default_factory=dict)
    _chunks: dict[int, list[range]] = field(default_factory=dict)

    def chunk_of(self, question: PlantedQuestion, count: int) -> range:
        """The tokens of the chunk, of `count` at most, that holds the question's first evidence."""
        at = self.source.questions.index(question)
        first = self.evidence[at][0][0] if self.evidence[at] else self.opening
        if count not in self._chunks:
            found = split_chunks(self.source.text, self.offsets[self.opening :], count)
            self._chunks[count] = [range(a + self.opening, b + self.opening) for a, b in found]
        return next(chunk for chunk in self._chunks[count] if first in chunk)

    def passages(self, count: int) -> Passages:
        """For excerpts of `count` tokens, which are counted from behind the opening."""
        if count not in self._passages:
            offsets = self.offsets[self.opening :]
            self._passages[count] = Passages(self.source.text, offsets, count)
        return self._passages[count]


def encode_document(tokenizer: Any, source: PlantedDocument) -> Encoded:
    """The tokens of a document and of its questions, and where the evidence lies."""
    ids, offsets = encode(tokenizer, source.text)
    asked = source.questions
    return Encoded(
        source,
        ids,
        offsets,
        len(opening_tokens(tokenizer)),
        [len(encode(tokenizer, question.text, begins=False).ids) for question in asked],
        [token_spans(offsets, question.evidence) for question in asked],
        [token_spans(offsets, answer_spans(source.text, question)) for question in asked],
    )


def groups(
    documents: Sequence[PlantedDocument], questions: int, most_tokens: int
) -> list[list[PlantedDocument]]:
    """Documents that are in memory together, longest first, alike in how long answers may be.

    Args:
        questions: a group has at least so many, if it can.
        most_tokens: of a group's documents, by the rows' own count of tokens.
    """
    kinds: dict[int, list[PlantedDocument]] = {}
    for document in documents:
        kinds.setdefault(document.new_tokens, []).append(document)
    found: list[list[PlantedDocument]] = []
    for kind in kinds.values():
        open_one: list[PlantedDocument] = []
        for document in sorted(kind, key=lambda one: (-one.length, -one.tokens)):
            is_full = (
                sum(len(one.questions) for one in open_one) >= questions
                or sum(one.tokens for one in open_one) + document.tokens > most_tokens
            )
            # times are told by length
            if open_one and (is_full or open_one[0].length != document.length):
                found.append(open_one)
                open_one = []
            open_one.append(document)
        found.append(open_one)
    return sorted(found, key=lambda group: -group[0].tokens)


class PlantedRun:
    """The answers under all conditions, group by group, each condition in a folder of its own.

    Args:
        folder: of the run; `<condition>/predictions/<task>.jsonl` and `<condition>/times.jsonl`
            are written there.
        readers: the models, by Condition.answers_by.
        seed: of the random selector; what it draws depends on the question too.
    """

    def __init__(
        self,
        folder: Path,
        conditions: Sequence[Condition],
        documents: Sequence[PlantedDocument],
        readers: Mapping[str, Reader],
        seed: int = 0,
    ):
        self.conditions, self.documents, self.readers = conditions, documents, readers
        self.seed = seed
        # models with one tokenizer share what it has read
        tokenizers = {name: _dump(reader.tokenizer) for name, reader in readers.items()}
        self._tongue = {
            name: next(other for other, dump in tokenizers.items() if dump == own)
            for name, own in tokenizers.items()
        }
        self._order: dict[str, list[str]] = {}
        for document in documents:
            order = self._order.setdefault(document.task, [])
            order += [question.id for question in document.questions]
        self._files = {
            condition.name: {
                task: PredictionFile(folder / condition.folder / FOLDER / f"{task}.jsonl").open()
                for task in self._order
            }
            for condition in conditions
        }
        self._times = {
            condition.name: PredictionFile(folder / condition.folder / TIMES_FILE).open()
            for condition in conditions
            if condition.answers_by != NOBODY
        }

    def run(self) -> None:
        """Asks what has not been answered yet.

        Raises:
            InputError: a group is more than the memory holds.
        """
        for condition in self.conditions:
            if condition.answers_by == NOBODY:
                self._answer_by_constants(condition)
        asking = [c for c in self.conditions if c.answers_by != NOBODY]
        if asking:
            self._ask_models(asking)
        for condition in self.conditions:
            for task, file in self._files[condition.name].items():
                file.finish(self._order[task])
        for times in self._times.values():
            times.finish(list(times.done))

    def _ask_models(self, conditions: Sequence[Condition]) -> None:
        one = next(iter(self.readers.values()))
        most = POSITIONS.get(one.model.device.type, POSITIONS["cpu"])
        left = [
            (group, waiting)
            for group in groups(self.documents, one.slots, most)
            if (waiting := [c for c in conditions if not self._is_done(c, group)])
        ]
        for reader in self.readers.values() if left else ():
            reader.read(left[0][0][0].text[:WARM_UP], method=Plain())
        progress = _Progress([len(waiting) * _positions(group) for group, waiting in left])
        for number, (group, waiting) in enumerate(left):
            try:
                self._group(group, waiting)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"--slots {one.slots}: that many questions about {len(group)} documents of "
                    f"{group[0].tokens} tokens are more than the memory holds; give fewer and "
                    "--resume"
                ) from error
            progress.advance(number)

    def _is_done(self, condition: Condition, group: Sequence[PlantedDocument]) -> bool:
        files = self._files[condition.name]
        return all(q.id in files[d.task].done for d in group for q in d.questions)

    def _group(self, group: Sequence[PlantedDocument], conditions: Sequence[Condition]) -> None:
        encoded: dict[str, list[Encoded]] = {}
        known: dict[tuple[str, str], list[Document]] = {}
        for condition in conditions:
            tongue = self._tongue[condition.answers_by]
            if tongue not in encoded:
                tokenizer = self.readers[tongue].tokenizer
                encoded[tongue] = [encode_document(tokenizer, one) for one in group]
            self._ask(condition, encoded[tongue], known)

    def _ask(
        self,
        condition: Condition,
        documents: Sequence[Encoded],
        known: dict[tuple[str, str], list[Document]],
    ) -> None:
        """One condition's answers about a group's documents.

        Args:
            known: the documents as they are read, one a question where each shortens its own; by
                the model and what it reads of them.
        """
        reader = self.readers[condition.answers_by]
        places = [
            [self._left(condition, document, question) for question in document.source.questions]
            for document in documents
        ]
        is_shared = condition.reads not in (BM25, ORACLE)
        key = (condition.answers_by, condition.reads)
        if key not in known:
            known[key] = [
                _document(reader, document, left)
                for document, lefts in zip(documents, places, strict=True)
                for left in (lefts[:1] if is_shared else lefts)
            ]
            if is_shared:
                same = [c.method for c in self.conditions if (c.answers_by, c.reads) == key]
                read_documents(known[key], same)
        read = iter(known[key])
        asked = []
        for document in documents:
            about = next(read) if is_shared else None
            for question in document.source.questions:
                seed = crc32(f"{self.seed}/{question.id}".encode())
                asked.append(Question(about or next(read), question.text, seed))
        first = documents[0].source
        found, times = answer(reader, asked, condition.method, first.new_tokens)
        answers = iter(found)
        for document, lefts in zip(documents, places, strict=True):
            file = self._files[condition.name][document.source.task]
            for i, question in enumerate(document.source.questions):
                row = _row(reader, condition, document, i, next(answers), lefts[i])
                if question.id not in file.done:
                    file.append(row)
        self._times[condition.name].append(
            {"id": f"{first.id}/{len(documents)}", "length": first.length, **asdict(times)}
        )

    def _left(
        self, condition: Condition, document: Encoded, question: PlantedQuestion
    ) -> Sequence[int]:
        """The tokens of the document that are read for a question, in ascending order."""
        every = range(len(document.ids))
        if condition.reads == WHOLE:
            return every
        opening, text = every[: document.opening], every[document.opening :]
        if condition.reads == DROP20:
            return [*opening, *text[int(DROPPED * len(text)) :]]
        most = condition.reads_tokens
        assert most is not None
        if condition.reads == MIDDLE:
            return [*opening, *without_middle(text, most)]
        if condition.reads == LAST:
            return [*opening, *text[-most:]]
        if condition.reads == ORACLE:
            return [*opening, *document.chunk_of(question, most)]
        found = document.passages(most).best(question.text).tokens
        return [*opening, *(place + document.opening for place in found)]

    def _answer_by_constants(self, condition: Condition) -> None:
        for task, file in self._files[condition.name].items():
            documents = [document for document in self.documents if document.task == task]
            answers = [q.answers[0] for document in documents for q in document.questions]
            constant = Counter(answers).most_common(1)[0][0]
            for document in documents:
                for question in document.questions:
                    if question.id not in file.done:
                        file.append({**_reference(document, question), "pred": constant})


def _dump(tokenizer: Any) -> tuple[str, list[int]]:
    """All that makes a fast tokenizer's tokens what they are."""
    return tokenizer.backend_tokenizer.to_str(), opening_tokens(tokenizer)


def _reference(document: PlantedDocument, question: PlantedQuestion) -> dict[str, Any]:
    """What a prediction says of its question."""
    return {
        "id": question.id,
        "document": document.id,
        "task": document.task,
        "metric": document.metric,
        "length": document.length,
        "answers": question.answers,
        **({"wrong": question.wrong} if question.wrong else {}),
    }


def _document(reader: Reader, document: Encoded, left: Sequence[int]) -> Document:
    """Those of a document's tokens that are left, as a reader knows them; not yet read."""
    ids = [document.ids[place] for place in left]
    offsets = [document.offsets[place] for place in left]
    text = document.source.text
    return Document(reader, text, ids, offsets, Plain(), opening=document.opening)


def _in_left(spans: Sequence[tuple[int, int]], left: Sequence[int]) -> Sequence[tuple[int, int]]:
    """Where token spans of a document lie among those of its tokens that are left."""
    return [(bisect_left(left, start), bisect_left(left, stop)) for start, stop in spans]


def _in_document(
    span: tuple[int, int] | None, left: Sequence[int], size: int
) -> tuple[int, int] | None:
    """The span of a document of `size` tokens that a span of the tokens left stands for.

    What is cut away before, between and behind them belongs to it.
    """
    if span is None:
        return None
    start, stop = span
    return left[start] if start else 0, left[stop] if stop < len(left) else size


def _row(
    reader: Reader,
    condition: Condition,
    document: Encoded,
    i: int,
    answered: Answer,
    left: Sequence[int],
) -> dict[str, Any]:
    kept, scored = answered.kept_tokens, answered.scored
    new = answered.token_ids
    if answered.finish_reason == "eos":
        new = new[:-1]
    evidence = document.evidence[i]
    ranks = None
    if scored is not None:
        ranks = evidence_ranks(scored.scores, scored.start, _in_left(evidence, left))
    there = None
    if condition.reads != WHOLE:
        places = set(left)
        there = [places.issuperset(range(*span)) for span in evidence]
    return {
        **_reference(document.source, document.source.questions[i]),
        "pred": text_of(reader.tokenizer, new),
        "kept": None if kept is None else [[left[at], round(score, 4)] for at, score in kept],
        "span": _in_document(scored and (scored.start, scored.stop), left, len(document.ids)),
        "ranks": ranks,
        "evidence": evidence,
        "value": document.values[i],
        "left": there,
        "prompt_tokens": len(left) + document.question_tokens[i],
        "new_tokens": len(new),
    }


def _positions(group: Sequence[PlantedDocument]) -> int:
    return sum(document.tokens + 200 for document in group)


class _Progress:
    """Lines on stderr every few seconds: groups done, and the seconds left of all."""

    def __init__(self, weights: Sequence[int], every: float = 5.0):
        self._weights, self._every = weights, every
        self._begun = self._said = time.perf_counter()

    def advance(self, number: int) -> None:
        """One more is done."""
        now, done = time.perf_counter(), number + 1
        if now - self._said < self._every and done < len(self._weights):
            return
        self._said = now
        share = sum(self._weights[:done]) / sum(self._weights)
        left = (now - self._begun) * (1 - share) / share
        say(f"{done} of {len(self._weights)} groups of documents, {left:,.0f} s left")
