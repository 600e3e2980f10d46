"""How `remamba ask` shows its answers: on a terminal, as JSON, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remamba.commands.text_input import printable
from remamba.engine.kept_words import Place, cut, places, snippets
from remamba.engine.page import PageAnswer, selection_page

if TYPE_CHECKING:
    from rich.text import Text

    from remamba import Answer, Document

INDENT = 11
"""Columns before an answer."""


@dataclass
class Answered:
    """One question with its answer, and plain Mamba's if that was asked for."""

    question: str
    answer: Answer
    plain: Answer | None
    document: Document
    is_same_model: bool = True
    """Plain Mamba answered with the same weights, of the same reading if there was one."""


def as_json(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """One object a question."""
    return [
        {
            "question": one.question,
            **_facts(one.answer),
            "kept": _kept(one),
            "passages": _passages(one),
            "plain": None if one.plain is None else _facts(one.plain),
        }
        for one in answered
    ]


def _kept(one: Answered) -> list[dict[str, Any]] | None:
    """The kept words; the bare tokens where the document's text is not known."""
    if one.answer.kept is None or one.answer.kept_tokens is None:
        return None
    if not one.document.offsets:
        return [
            {"text": None, "start": None, "stop": None, "positions": [position], "score": score}
            for position, score in one.answer.kept_tokens
        ]
    return [{**vars(word), "positions": list(word.positions)} for word in one.answer.kept]


def _passages(one: Answered) -> list[dict[str, Any]] | None:
    """The parts of the document that were read for the answer."""
    found = one.answer.passages
    return None if found is None else [vars(passage) for passage in found]


def _facts(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text.strip(),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "seconds": answer.seconds,
    }


def as_page(title: str, text: str, answered: Sequence[Answered]) -> str:
    """The selection of every question, painted on the document."""
    answers = [
        PageAnswer(
            one.question,
            one.answer.text.strip(),
            one.answer.kept or (),
            "" if one.plain is None else f"plain Mamba: {one.plain.text.strip()}",
        )
        for one in answered
    ]
    return selection_page(f"{title}: what was kept", text, answers)


def print_answers(document: Document, answered: Sequence[Answered], show: int) -> None:
    """The answers on standard output, each with its kept places and its times."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for i, one in enumerate(answered):
        if i:
            console.print()
        for line in _lines(document, one, show):
            console.print(line)


def _lines(document: Document, one: Answered, show: int) -> list[Text]:
    from rich.text import Text

    kept = one.answer.kept_tokens
    name = "Mamba" if kept is None else "ReMamba"
    lines = [
        Text(printable(one.question), "bold"),
        Text.assemble(f"  {name:<8} ", (_shown(one.answer), "bold green")),
    ]
    if one.plain is not None:
        lines.append(Text.assemble(f"  {'Mamba':<8} ", (_shown(one.plain), "bold")))
    if kept is not None:
        lines += _kept_lines(document, one, len(kept), show)
    for passage in (one.answer.passages or ())[:show]:
        place = f"characters {passage.start:,} to {passage.stop:,}: "
        lines.append(Text.assemble((f"  read     {place}", "dim"), _ends(passage.text)))
    once, reading = document.memory is not None, ""
    if document.seconds is not None:
        reading = f"document {document.seconds:.2f} s, "
    lines.append(Text(f"  time     {reading}{_times(one.answer, once)}", "dim"))
    if one.plain is not None:
        once = once and one.is_same_model
        reading = "document same reading, " if once else ""
        lines.append(Text(f"  Mamba's  {reading}{_times(one.plain, once)}", "dim"))
    return lines


def _ends(text: str) -> str:
    """A passage's first and last words, on one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= 120 else f"{line[:70].rstrip()} ... {line[-40:].lstrip()}"


def _shown(answer: Answer) -> str:
    lines = [printable(line) for line in answer.text.strip().splitlines()] or ["(no text)"]
    text = ("\n" + " " * INDENT).join(lines)
    return text + (" ..." if answer.finish_reason == "length" else "")


def _kept_lines(document: Document, one: Answered, count: int, show: int) -> list[Text]:
    """Which places were kept: a line for each stretch of the document, the best first."""
    from rich.text import Text

    every = places(one.answer.kept or ())
    best = sorted(every, key=lambda place: -place.score)[:show]
    total = len(document.ids)  # 0 for a memory that holds none
    share = f" of {total:,} tokens ({100 * count / total:.1f} %)" if total else " tokens"
    few = f", the best {len(best)} of {len(every)} places" if len(best) < len(every) else ""
    more = f"; position and score{few}:" if best else ""
    lines = [Text(f"  kept     {count:,}{share}{more}", "dim")]
    words = sorted((word for place in best for word in place.words), key=lambda word: word.start)
    found = snippets(document.text, words)
    for snippet in sorted(found, key=lambda s: -max(word.score for word in s.words)):
        line = Text("    ")
        for place in places(snippet.words):
            line.append(f"{_positions(place)} ", "cyan").append(f"{place.score:.2f}  ", "dim")
        line.append("... " if snippet.start > 0 else "")
        for text, kept in cut(document.text, snippet):
            line.append(printable(text), "bold reverse" if kept else "")
        line.append(" ..." if snippet.stop < len(document.text) else "")
        lines.append(line)
    return lines


def _positions(place: Place) -> str:
    """As "5476-5491"; a comma stands where a word's token between was not kept: "2,4-5"."""
    runs: list[list[int]] = []
    for position in place.positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _times(answer: Answer, behind_memory: bool) -> str:
    """The time of each stage, in words; behind a memory only the question is read first."""
    seconds = answer.seconds
    if "stage1" in seconds:
        first = "question" if behind_memory else "stage 1"
        parts = [f"{first} {seconds['stage1']:.2f} s", f"stage 2 {seconds['stage2']:.2f} s"]
    else:
        first = "question" if behind_memory else "prompt"
        parts = [f"{first} {seconds['prefill']:.2f} s"]
    parts.append(f"answer {seconds['decode']:.2f} s ({answer.new_tokens} tokens)")
    return ", ".join(parts)
