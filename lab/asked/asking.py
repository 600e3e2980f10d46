"""Documents of a planted run read once for all conditions, and their questions answered.

All of it by `remamba.Reader`: a document's one reading serves every method that needs the
document's states alone (`serves_memory`); the others read each question's whole prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from remamba.compression_config import CompressionConfig
from remamba.engine.answer import Answer, Ask
from remamba.engine.document import Document
from remamba.engine.reader import Reader
from remamba.engine.sampling import SamplingOptions
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba

WHOLE_DOCUMENT = ReMamba(CompressionConfig(length=1.0, keep_ratio=1.0))
"""Keeps the states of every position, which hold those of any setting's span."""


@dataclass
class Times:
    """What some documents and their questions took; seconds of all of them together."""

    documents: int = 0
    questions: int = 0
    read: float = 0.0
    """Of the documents' readings, where one serves all questions."""
    answer: float = 0.0
    """Of the answers, the reading of whole prompts in it where there is one for each question."""
    peak_bytes: int | None = None
    """The most memory in use while they were answered (GPU only)."""


class Question(NamedTuple):
    """One question, and the document that it is asked about."""

    document: Document
    text: str
    seed: int
    """Of a method that draws random numbers."""


def read_documents(documents: Sequence[Document], methods: Sequence[Method]) -> None:
    """Read each document once, for those of the methods that one reading serves."""
    served = [method for method in methods if serves_all(method)]
    if not served:
        return
    with_states = any(isinstance(method, ReMamba) for method in served)
    method = WHOLE_DOCUMENT if with_states else Plain()
    for document in documents:
        begun = time.perf_counter()
        document.memory = document.reader.read_document(document, method)
        _wait(document.reader)
        document.seconds = time.perf_counter() - begun


def answer(
    reader: Reader, questions: Sequence[Question], method: Method, new_tokens: int
) -> tuple[list[Answer], Times]:
    """An answer for each question, in their order, and what that took."""
    asks = [
        Ask(
            question.document,
            question.text,
            method=method,
            options=SamplingOptions(max_new_tokens=new_tokens, seed=question.seed),
            template="{question}",
        )
        for question in questions
    ]
    documents = {id(question.document): question.document for question in questions}
    shared = [found for found in documents.values() if serves_all(method) and found.memory]
    times = Times(len(documents), len(asks), sum(found.seconds or 0.0 for found in shared))
    on_gpu = reader.model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(reader.model.device)
    begun = time.perf_counter()
    found = reader.answer(asks)
    times.answer = time.perf_counter() - begun
    if on_gpu:
        times.peak_bytes = torch.cuda.max_memory_allocated(reader.model.device)
    return found, times


def serves_all(method: Method) -> bool:
    """Whether one reading of a whole document serves the method, whatever else it serves."""
    return isinstance(method, Plain | ReMamba) and method.serves_memory


def _wait(reader: Reader) -> None:
    if reader.model.device.type == "cuda":
        torch.cuda.synchronize(reader.model.device)
