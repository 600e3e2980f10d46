"""Predict: every question is asked once, each answer is written as it comes, a kill loses none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from remamba.errors import InputError
from remamba.evals.items import Item
from remamba.evals.predictions import FOLDER, PredictionFile
from remamba.evals.prompting import Text
from remamba.evals.readers import (
    Answer,
    AnsweringModel,
    Ask,
    SamplingOptions,
    ends_of_line,
    make_ask,
    text_of,
)
from remamba.methods.base import Method

STORY, WORLD = "story", "world"


class Asking(Protocol):
    """How questions become texts, and how long answers may be."""

    @property
    def limit(self) -> int:
        """Most tokens of a prompt."""
        ...

    def text(self, dataset: str, item: Item) -> Text:
        """What the model reads of a question."""
        ...

    def new_tokens(self, dataset: str) -> int:
        """Most tokens of an answer."""
        ...

    def describe(self) -> str:
        """All of that in words."""
        ...


def check_positions(reader: AnsweringModel, asking: Asking, datasets: Iterable[str]) -> None:
    """Refuse prompts and answers that together are more than the model's positions."""
    positions = getattr(reader.model.config, "max_position_embeddings", None)
    longest = max(map(asking.new_tokens, datasets))
    if positions is not None and asking.limit + longest > positions:
        raise InputError(
            f"prompts of up to {asking.limit} tokens and answers of up to {longest} are more than "
            f"the model's {positions} positions; lower --max-length (for needles, --lengths) by "
            f"{asking.limit + longest - positions}"
        )


def predict(
    folder: Path,
    items: Mapping[str, Sequence[Item]],
    reader: AnsweringModel,
    method: Method,
    asking: Asking,
    *,
    seed: int = 0,
    retry_failed: bool = False,
) -> int:
    """Writes predictions/<dataset>.jsonl for every dataset; what is there already is kept.

    Args:
        items: dataset -> its questions.
        method: how the model reads.
        seed: of a method that draws random numbers.
        retry_failed: ask the questions again that failed before.

    Returns:
        How many of the predictions in the files failed.
    """
    files = {
        dataset: PredictionFile(folder / FOLDER / f"{dataset}.jsonl").open(drop_failed=retry_failed)
        for dataset in items
    }
    progress = Progress(
        {name: [item for item in items[name] if item.id not in files[name].done] for name in items}
    )
    for dataset, file in files.items():
        left = progress.left[dataset]
        asks = _Asks(dataset, left, reader.tokenizer, method, asking, seed)
        asks.answer(reader, file, progress)
        file.finish([item.id for item in items[dataset]])
    return sum(row.get("error") is not None for f in files.values() for row in f.done.values())


class _Asks:
    """The questions of a dataset as a model is asked them; an item of two parts has two."""

    def __init__(
        self,
        dataset: str,
        items: Sequence[Item],
        tokenizer: Any,
        method: Method,
        asking: Asking,
        seed: int,
    ):
        self.dataset, self.tokenizer, self.method = dataset, tokenizer, method
        line = ends_of_line(tokenizer) if dataset == "samsum" else {}
        most = asking.new_tokens(dataset)
        self._options = SamplingOptions(max_new_tokens=most, seed=seed, **line)
        self._parts: dict[str, tuple[Item, dict[str, Answer]]] = {}
        self._asks: list[Ask] = []
        self._of: list[tuple[str, str]] = []
        for item in items:
            self._parts[item.id] = item, {}
            self._add(item, STORY, asking.text(dataset, item))
            if item.world_prompt is not None:
                self._add(item, WORLD, Text(item.world_prompt, None), has_document=False)

    def _add(self, item: Item, part: str, text: Text, *, has_document: bool = True) -> None:
        try:
            ask = make_ask(text, self.method, self._options, has_document=has_document)
        except InputError as error:
            self._parts[item.id][1][part] = Answer.failed(error)
            return
        self._asks.append(ask)
        self._of.append((item.id, part))

    def answer(self, reader: AnsweringModel, file: PredictionFile, progress: Progress) -> None:
        """Write a row for each question, as soon as all its parts are answered."""
        for item, parts in self._parts.values():
            self._write(item, parts, file, progress)
        for number, answer in reader.answer_each(self._asks, errors="return"):
            name, part = self._of[number]
            item, parts = self._parts[name]
            parts[part] = answer
            self._write(item, parts, file, progress)

    def _write(
        self, item: Item, parts: dict[str, Answer], file: PredictionFile, progress: Progress
    ) -> None:
        if len(parts) == 1 + (item.world_prompt is not None):
            file.append(_row(item, parts, self.tokenizer))
            progress.advance(self.dataset, item)


def _row(item: Item, parts: dict[str, Answer], tokenizer: Any) -> dict[str, Any]:
    """A prediction as it is written; with a world question both answers in L-Eval's form."""
    story = parts[STORY]
    error = next((part.error for part in parts.values() if part.error is not None), None)
    text = text_of(tokenizer, story.token_ids)
    if WORLD in parts:
        text += f" [fact: {text_of(tokenizer, parts[WORLD].token_ids)}]"
    kept = story.kept_tokens
    row = {
        "id": item.id,
        "pred": "" if error else text,
        **item.reference(),
        **item.details,
        "kept": None if kept is None else [[at, round(score, 4)] for at, score in kept],
        "prompt_tokens": story.prompt_tokens,
        "new_tokens": story.new_tokens,
    }
    if error is None:
        return row
    return {**row, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


class Progress:
    """Lines on stderr: how many questions of a dataset are done, and the seconds left of all."""

    def __init__(self, left: Mapping[str, Sequence[Item]], every: float = 5.0):
        self.left = left
        self._weight = {name: [_weight(item) for item in items] for name, items in left.items()}
        self._all = sum(map(sum, self._weight.values()))
        self._done_weight, self._done = 0.0, dict.fromkeys(left, 0)
        self._begun = self._said = time.perf_counter()
        self._every = every

    def advance(self, dataset: str, item: Item) -> None:
        """One more is done."""
        self._done[dataset] += 1
        self._done_weight += _weight(item)
        now, count = time.perf_counter(), len(self.left[dataset])
        if now - self._said < self._every and self._done[dataset] < count:
            return
        self._said = now
        spent = now - self._begun
        remaining = spent * (self._all - self._done_weight) / self._done_weight
        say(f"{dataset}: {self._done[dataset]} of {count}, {remaining:,.0f} s left of all")


def _weight(item: Item) -> float:
    """What an answer costs: prompts of all lengths are cut, and the answer costs too."""
    return 5_000 + min(sum(map(len, item.prompt)), 25_000)


def say(text: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
