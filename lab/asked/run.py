"""Every planted question asked under every condition; a kill loses no answer."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from lab.asked.asking import Answered, PlantedReader, Reading, Times, serves_all
from lab.asked.conditions import (
    BM25,
    DROP20,
    DROPPED,
    MIDDLE,
    NOBODY,
    WHOLE,
    Condition,
)
from lab.asked.evidence import token_spans
from lab.asked.tasks import PlantedDocument, PlantedQuestion, answer_spans
from remamba.errors import InputError
from remamba.evals.predictions import FOLDER, PredictionFile
from remamba.evals.readers import text_of
from remamba.evals.runner import say
from remamba.methods.passages import Passages, without_middle
from remamba.methods.remamba import ReMamba
from remamba.text import encode, opening_tokens

TIMES_FILE = "times.jsonl"
WARM_UP = 400
"""Characters that a model reads first, so that no batch's time holds what happens only once."""


@dataclass
class Encoded:
    """A document and its questions as one tokenizer reads them."""

    source: PlantedDocument
    ids: list[int]
    offsets: list[tuple[int, int]]
    opening: int
    """How many of the tokens stand before the text (a bos)."""
    questions: list[list[int]]
    evidence: list[list[tuple[int, int]]]
    """Token spans of each question."""
    values: list[list[tuple[int, int]]]
    """Token spans of the answers in the evidence."""
    _passages: dict[int, Passages] = field(default_factory=dict)

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
        [encode(tokenizer, question.text, begins=False).ids for question in asked],
        [token_spans(offsets, question.evidence) for question in asked],
        [token_spans(offsets, answer_spans(source.text, question)) for question in asked],
    )


def batches(
    documents: Sequence[PlantedDocument], batch_size: int, most_positions: int
) -> list[list[PlantedDocument]]:
    """Documents that are read together, longest first: alike in length and in what is asked.

    Args:
        most_positions: of a batch, pads included, by the rows' own count of tokens.
    """
    kinds: dict[tuple[int, int], list[PlantedDocument]] = {}
    for document in documents:
        kinds.setdefault((len(document.questions), document.new_tokens), []).append(document)
    found: list[list[PlantedDocument]] = []
    for kind in kinds.values():
        open_one: list[PlantedDocument] = []
        for document in sorted(kind, key=lambda one: -one.tokens):
            longest = open_one[0].tokens if open_one else 0
            is_full = len(open_one) == batch_size or longest * (len(open_one) + 1) > most_positions
            if open_one and (is_full or longest > 2 * document.tokens):
                found.append(open_one)
                open_one = []
            open_one.append(document)
        found.append(open_one)
    return sorted(found, key=lambda batch: -batch[0].tokens)


class PlantedRun:
    """The answers under all conditions, batch by batch, each condition in a folder of its own.

    Args:
        folder: of the run; `<condition>/predictions/<task>.jsonl` and `<condition>/times.jsonl`
            are written there.
        readers: the models, by Condition.answers_by.
        seed: of the random selector; what it draws depends on the batch too.
    """

    def __init__(
        self,
        folder: Path,
        conditions: Sequence[Condition],
        documents: Sequence[PlantedDocument],
        readers: Mapping[str, PlantedReader],
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

    def run(self, batch_size: int, most_positions: int) -> None:
        """Asks what has not been answered yet.

        Raises:
            InputError: a batch is more than the memory holds.
        """
        for condition in self.conditions:
            if condition.answers_by == NOBODY:
                self._answer_by_constants(condition)
        asking = [c for c in self.conditions if c.answers_by != NOBODY]
        left = [
            (batch, waiting)
            for batch in batches(self.documents, batch_size, most_positions)
            if (waiting := [c for c in asking if not self._is_done(c, batch)])
        ]
        for reader in self.readers.values() if left else ():
            reader.read([reader.tokenizer(left[0][0][0].text[:WARM_UP])["input_ids"]])
        progress = _Progress([len(waiting) * _positions(batch) for batch, waiting in left])
        for number, (batch, waiting) in enumerate(left):
            try:
                self._batch(batch, waiting)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"--batch-size {batch_size}: {len(batch)} documents of {batch[0].tokens} "
                    f"tokens are more than the memory holds; give a smaller one and --resume"
                ) from error
            progress.advance(number)
        for condition in self.conditions:
            for task, file in self._files[condition.name].items():
                file.finish(self._order[task])
        for times in self._times.values():
            times.finish(list(times.done))

    def _is_done(self, condition: Condition, batch: Sequence[PlantedDocument]) -> bool:
        files = self._files[condition.name]
        return all(q.id in files[d.task].done for d in batch for q in d.questions)

    def _batch(self, batch: Sequence[PlantedDocument], conditions: Sequence[Condition]) -> None:
        encoded: dict[str, list[Encoded]] = {}
        readings: dict[tuple[str, str], Reading] = {}
        for condition in conditions:
            reader = self.readers[condition.answers_by]
            tongue = self._tongue[condition.answers_by]
            if tongue not in encoded:
                encoded[tongue] = [encode_document(reader.tokenizer, one) for one in batch]
            documents = encoded[tongue]
            with _seeded(f"{self.seed}/{batch[0].id}/{len(batch)}", reader.model.device):
                self._ask(condition, documents, readings)

    def _ask(
        self,
        condition: Condition,
        documents: Sequence[Encoded],
        readings: dict[tuple[str, str], Reading],
    ) -> None:
        reader = self.readers[condition.answers_by]
        places = [
            [self._left(condition, document, question) for question in document.source.questions]
            for document in documents
        ]
        # a document that each question shortens anew is read anew for each
        is_shared = condition.reads != BM25
        key = (condition.answers_by, condition.reads)
        if key not in readings:
            readings[key] = self._read(condition, documents, places, is_shared)
        questions = [document.questions for document in documents]
        evidence = [
            [_in_left(spans, left) for spans, left in zip(document.evidence, asked, strict=True)]
            for document, asked in zip(documents, places, strict=True)
        ]
        if not is_shared:
            questions = [[question] for asked in questions for question in asked]
            evidence = [[spans] for asked in evidence for spans in asked]
        found, times = reader.answer(
            readings[key],
            questions,
            condition.method,
            documents[0].source.new_tokens,
            evidence if condition.compression is not None else None,
        )
        answers = iter([one for some in found for one in some])
        for document, left in zip(documents, places, strict=True):
            file = self._files[condition.name][document.source.task]
            for i, question in enumerate(document.source.questions):
                row = _row(reader, condition, document, i, next(answers), left[i])
                if question.id not in file.done:
                    file.append(row)
        first = documents[0].source
        self._times[condition.name].append(
            {"id": f"{first.id}/{len(documents)}", "length": first.length, **asdict(times)}
        )

    def _read(
        self,
        condition: Condition,
        documents: Sequence[Encoded],
        places: Sequence[Sequence[Sequence[int]]],
        is_shared: bool,
    ) -> Reading:
        texts: list[Sequence[int]] = [
            [document.ids[place] for place in places_of]
            for document, asked in zip(documents, places, strict=True)
            for places_of in (asked[:1] if is_shared else asked)
        ]
        same = [
            c.method
            for c in self.conditions
            if (c.answers_by, c.reads) == (condition.answers_by, condition.reads)
        ]
        of_memory = [method for method in same if serves_all(method)]
        if not of_memory:
            return Reading(texts, None, Times(len(texts)))
        return self.readers[condition.answers_by].read(
            texts, any(isinstance(method, ReMamba) for method in of_memory)
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
    }


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
    reader: PlantedReader,
    condition: Condition,
    document: Encoded,
    i: int,
    answered: Answered,
    left: Sequence[int],
) -> dict[str, Any]:
    kept = answered.kept
    evidence = document.evidence[i]
    there = None
    if condition.reads != WHOLE:
        places = set(left)
        there = [places.issuperset(range(*span)) for span in evidence]
    return {
        **_reference(document.source, document.source.questions[i]),
        "pred": text_of(reader.tokenizer, answered.tokens),
        "kept": None if kept is None else [[left[at], round(score, 4)] for at, score in kept],
        "span": _in_document(answered.span, left, len(document.ids)),
        "ranks": answered.ranks,
        "evidence": evidence,
        "value": document.values[i],
        "left": there,
        "prompt_tokens": len(left) + len(document.questions[i]),
        "new_tokens": len(answered.tokens),
    }


def _positions(batch: Sequence[PlantedDocument]) -> int:
    return sum(document.tokens + 200 for document in batch)


@contextmanager
def _seeded(text: str, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from a text, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(crc32(text.encode()))
        yield


class _Progress:
    """Lines on stderr every few seconds: batches done, and the seconds left of all."""

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
        say(f"{done} of {len(self._weights)} batches, {left:,.0f} s left")
