"""Needles: facts at chosen depths of real prose, asked for; was the answer right, was it kept?"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remamba.engine.request import fill_template
from remamba.errors import InputError
from remamba.evals.items import DataFolder, Item, Prompt
from remamba.evals.metrics import first_line
from remamba.evals.predictions import Prediction
from remamba.evals.prompting import Text
from remamba.json_lines import JsonLines
from remamba.text import encode

DATASET = "needle"
NEW_TOKENS = 16
QUESTION_TEMPLATE = "\n\nQuestion: {question}\nAnswer:"
"""For models that name none of their own."""
FIRST_NAMES = "Ada Basil Clara Dora Edgar Felix Grace Hugo Irene Jasper Kate Leo Mabel Nora Oscar"
SURNAMES = "Abbot Barlow Corbett Dawson Finch Garland Hobson Kendall Locke Mercer Oakley Quinn"
KINDS = {
    "home": (
        "{p} lives in {v}.",
        "Where does {p} live?",
        "Antwerp Belfast Bremen Cairo Dijon Geneva Lisbon Madrid Naples Oslo Prague Vienna",
    ),
    "coat": (
        "{p} always wears a coat of {v}.",
        "What colour is {p}'s coat?",
        "amber black blue brown crimson green grey orange purple red scarlet white yellow",
    ),
    "instrument": (
        "{p} plays the {v}.",
        "Which instrument does {p} play?",
        "banjo cello clarinet drum fiddle flute guitar harp organ piano trumpet viola violin",
    ),
    "password": (
        "The password of {p} is {v}.",
        "What is the password of {p}?",
        "anchor arrow basket candle castle dragon feather hammer island mirror pepper saddle",
    ),
}
"""What a needle says, how it is asked for, and the values it may have."""
LEAST_PROSE = 40
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Needle(NamedTuple):
    """A planted sentence."""

    text: str
    question: str
    value: str


def read_prose(folder: DataFolder) -> list[str]:
    """The texts of a folder: .txt and .md files, and the `text` of .jsonl[.gz|.xz] rows.

    Raises:
        InputError: there is none, or a file cannot be read.
    """
    texts = []
    for file in sorted(folder.path.iterdir()):
        if re.search(r"\.jsonl(\.gz|\.xz)?$", file.name):
            texts += [row.get_text("text", empty=False) for row in JsonLines(file)]
        elif file.suffix in (".txt", ".md") and not file.name.startswith("README"):
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{file}: not UTF-8 ({error.reason}); save it as UTF-8") from error
        else:
            continue
        folder.hashes[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    if not any(map(str.strip, texts)):
        raise InputError(f"--data {folder.path} holds no prose; put .txt or .jsonl files there")
    return [text for text in texts if text.strip()]


def make_items(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    per_cell: int = 5,
    needles: int = 1,
    template: str = QUESTION_TEMPLATE,
    seed: int = 0,
) -> list[Item]:
    """Questions about one needle each, `per_cell` for every length and depth.

    A document is about `length` tokens, whole sentences, the question not counted. The needle
    asked for stands at the sentence border nearest to its depth; the others, of the same kind and
    about other people, at borders drawn at random. The same seed gives the same questions.
    """
    items = []
    for length in lengths:
        for depth in depths:
            for number in range(per_cell):
                draw = random.Random(f"{seed}/{length}/{depth}/{number}")
                planted = draw_needles(draw, needles)
                document, place = _document(texts, tokenizer, draw, length, depth, planted)
                found = encode(tokenizer, document)
                start, stop = place, place + len(planted[0].text)
                inside = [
                    i for i, (a, b) in enumerate(found.offsets) if a < stop and b > start and a < b
                ]
                items.append(
                    Item(
                        f"{length}/{depth:g}/{number}",
                        Prompt("", document, fill_template(template, planted[0].question)),
                        [planted[0].value],
                        planted[0].question,
                        length=length,
                        details={"depth": depth, "evidence": [inside[0], inside[-1] + 1]},
                    )
                )
    return items


def draw_needles(draw: random.Random, count: int) -> list[Needle]:
    """Facts of one kind about `count` people; the first is asked for, its value is only its own."""
    fact, question, values = KINDS[draw.choice(sorted(KINDS))]
    people = [f"{a} {b}" for a in FIRST_NAMES.split() for b in SURNAMES.split()]
    value, *others = draw.sample(values.split(), len(values.split()))
    found = []
    for i, person in enumerate(draw.sample(people, count)):
        told = value if i == 0 else draw.choice(others)
        found.append(Needle(fact.format(p=person, v=told), question.format(p=person), told))
    return found


def _document(
    texts: Sequence[str],
    tokenizer: Any,
    draw: random.Random,
    length: int,
    depth: float,
    needles: Sequence[Needle],
) -> tuple[str, int]:
    """Prose with needles, and the character where the first of them begins."""
    said = [len(encode(tokenizer, " " + needle.text, begins=False).ids) for needle in needles]
    room = length - sum(said)
    if room < LEAST_PROSE:
        raise InputError(
            f"--lengths {length} leaves {room} tokens of prose beside {len(needles)} needles; give "
            f"at least {sum(said) + LEAST_PROSE}"
        )
    prose = _prose(texts, tokenizer, draw, room)
    sentences = SENTENCE_END.split(prose)
    starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])
    borders = [int(np.abs(starts - depth * starts[-1]).argmin())]
    borders += [draw.randrange(len(starts)) for _ in needles[1:]]
    parts: list[tuple[str, bool]] = []
    for i in range(len(starts)):
        planted = [n for n, border in enumerate(borders) if border == i]
        parts += [(needles[n].text, n == 0) for n in planted]
        if i < len(sentences):
            parts.append((sentences[i], False))
    at = next(i for i, (_, is_asked) in enumerate(parts) if is_asked)
    before = "".join(part + " " for part, _ in parts[:at])
    return " ".join(part for part, _ in parts), len(before)


def _prose(texts: Sequence[str], tokenizer: Any, draw: random.Random, room: int) -> str:
    """At most `room` tokens of whole sentences of one text (of several where one is too short)."""
    collected = ""
    while True:
        text = draw.choice(texts)
        need = 12 * room
        start = draw.randrange(max(1, len(text) - need))
        window = text[start : start + need]
        if start:  # begin with a whole sentence
            window = SENTENCE_END.split(window, maxsplit=1)[-1]
        collected = f"{collected}\n\n{window}" if collected else window
        found = encode(tokenizer, collected, begins=False)
        if len(found.ids) > room:
            cut = collected[: found.offsets[room][0]]
            whole = SENTENCE_END.split(cut)[:-1]
            return " ".join(whole) if whole else cut


class NeedleAsking(NamedTuple):
    """Needles are asked as they are: nothing is cut."""

    lengths: tuple[int, ...]
    words: str

    @property
    def limit(self) -> int:
        return max(self.lengths) + 64

    def text(self, dataset: str, item: Item) -> Text:
        return Text(item.prompt.text, len(item.prompt.document))

    def new_tokens(self, dataset: str) -> int:
        return NEW_TOKENS

    def describe(self) -> str:
        return self.words


def score(dataset: str, predictions: Sequence[Prediction], _: str) -> list[float]:
    """1 where the first line of the answer says the value, as a whole word in any case."""
    return [
        float(
            not p.failed
            and any(
                re.search(rf"\b{re.escape(answer)}\b", first_line(p.pred), re.IGNORECASE)
                for answer in p.answers
            )
        )
        for p in predictions
    ]


def cell(prediction: Prediction) -> tuple[int, float]:
    """(length, depth) of a needle.

    Raises:
        InputError: the row does not tell its depth.
    """
    depth = prediction.row.get("depth")
    if isinstance(depth, bool) or not isinstance(depth, int | float):
        raise InputError(f"{prediction.row.where}: 'depth' is {depth!r:.40}; it must be a number")
    assert prediction.length is not None, "needles are read with their length"
    return prediction.length, float(depth)


def cells(predictions: Sequence[Prediction]) -> dict[tuple[int, float], list[int]]:
    """(length, depth) -> the rows there."""
    found: dict[tuple[int, float], list[int]] = {}
    for i, prediction in enumerate(predictions):
        found.setdefault(cell(prediction), []).append(i)
    return dict(sorted(found.items()))


def strata(predictions: Sequence[Prediction]) -> list[list[int]]:
    """The rows of each length and depth."""
    return list(cells(predictions).values())


def evidence_kept(row: Mapping[str, Any]) -> bool | None:
    """Whether a token of the needle was kept; None where the row does not tell."""
    kept, evidence = row.get("kept"), row.get("evidence")
    if kept is None or evidence is None:
        return None
    start, stop = evidence
    return any(start <= position < stop for position, _ in kept)


def summarise(
    dataset: str, predictions: Sequence[Prediction], scores: Sequence[float], _: str
) -> dict[str, Any]:
    """`score` (the mean over the cells) and `n`, `evidence_kept`, and both by cell, times 100."""
    values = np.asarray(scores)
    kept = [evidence_kept(p.row) for p in predictions]
    found = [
        {
            "length": length,
            "depth": depth,
            "score": 100 * float(values[rows].mean()),
            "evidence_kept": _share([kept[i] for i in rows]),
        }
        for (length, depth), rows in cells(predictions).items()
    ]
    return {
        "score": float(np.mean([entry["score"] for entry in found])),
        "n": len(scores),
        "evidence_kept": _share(kept),
        "cells": found,
    }


def _share(kept: Sequence[bool | None]) -> float | None:
    told = [value for value in kept if value is not None]
    return 100 * sum(told) / len(told) if told else None
