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
from remamba.evals.readers import Answer, Ask, Reader

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


def check_positions(reader: Reader, asking: Asking, datasets: Iterable[str]) -> None:
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
    reader: Reader,
    asking: Asking,
    *,
    retry_failed: bool = False,
) -> int:
    """Writes predictions/<dataset>.jsonl for every dataset; what is there already is kept.

    Args:
        items: dataset -> its questions.
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
        _answer_all(dataset, left, file, reader, asking, progress)
        file.finish([item.id for item in items[dataset]])
    return sum(row.get("error") is not None for f in files.values() for row in f.done.values())


def _answer_all(
    dataset: str,
    items: Sequence[Item],
    file: PredictionFile,
    reader: Reader,
    asking: Asking,
    progress: Progress,
) -> None:
    by_id = {item.id: item for item in items}
    most = asking.new_tokens(dataset)
    asks = []
    for item in items:
        text = asking.text(dataset, item)
        asks.append(Ask((item.id, STORY), text, most, ends_line=dataset == "samsum"))
        if item.world_prompt is not None:
            asks.append(Ask((item.id, WORLD), Text(item.world_prompt, None), most, False, False))
    partial: dict[str, dict[str, Answer]] = {}
    for answer in reader.answer(asks):
        name, part = answer.key
        item, parts = by_id[name], partial.setdefault(name, {})
        parts[part] = answer
        if len(parts) == 1 + (item.world_prompt is not None):
            file.append(_row(item, partial.pop(name)))
            progress.advance(dataset, item)


def _row(item: Item, parts: dict[str, Answer]) -> dict[str, Any]:
    """A prediction as it is written; with a world question both answers in L-Eval's form."""
    story = parts[STORY]
    error = next((part.error for part in parts.values() if part.error is not None), None)
    text = story.text
    if WORLD in parts:
        text += f" [fact: {parts[WORLD].text}]"
    row = {
        "id": item.id,
        "pred": "" if error else text,
        **item.reference(),
        **item.details,
        "kept": None if story.kept is None else [[at, round(s, 4)] for at, s in story.kept],
        "prompt_tokens": story.prompt_tokens,
        "new_tokens": story.new_tokens,
    }
    return row if error is None else {**row, "error": error}


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
