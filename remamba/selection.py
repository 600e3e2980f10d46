"""Which words were kept: the selection as a list of words, as snippets, and painted on a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WORD_LIMIT = 40
"""Longest stretch of letters taken as one word; scripts without spaces would give whole lines."""
SHADES = 5
"""Steps of colour on the page, by score."""


@dataclass(frozen=True)
class KeptWord:
    """A word of the document with the tokens of it that were kept."""

    text: str
    start: int
    """Its first character in the document."""
    stop: int
    positions: tuple[int, ...]
    """Of its kept tokens, in the document (in the prompt, if there is no document)."""
    score: float
    """The highest of their scores."""


@dataclass(frozen=True)
class Snippet:
    """A stretch of the document around kept words that stand near one another."""

    start: int
    stop: int
    words: tuple[KeptWord, ...]


def kept_words(
    text: str, offsets: Sequence[tuple[int, int]], kept: Sequence[tuple[int, float]]
) -> list[KeptWord]:
    """The words that the kept tokens are part of, in the order of the document.

    Args:
        text: the document.
        offsets: (start, stop) characters of each of its tokens. Kept tokens that stand for none
            (a bos), or lie beyond them, are left out.
        kept: position and score of each kept token, as a completion tells them.
    """
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for position, score in kept:
        start, stop = offsets[position] if position < len(offsets) else (0, 0)
        if start < stop:
            found.setdefault(_word_at(text, start, stop), []).append((position, score))
    return [
        KeptWord(
            text[start:stop],
            start,
            stop,
            tuple(position for position, _ in tokens),
            max(score for _, score in tokens),
        )
        for (start, stop), tokens in sorted(found.items())
    ]


def _word_at(text: str, start: int, stop: int) -> tuple[int, int]:
    """The word around a token; a token of signs or of white space stands for itself."""
    inner_start = start + len(text[start:stop]) - len(text[start:stop].lstrip())
    inner_stop = inner_start + len(text[start:stop].strip())
    if inner_start == inner_stop:
        return start, stop
    start, stop = inner_start, inner_stop
    while _is_letter(text[start : start + 1]) and _is_letter(text[start - 1 : start]):
        if stop - start >= WORD_LIMIT:
            break
        start -= 1
    while _is_letter(text[stop - 1 : stop]) and _is_letter(text[stop : stop + 1]):
        if stop - start >= WORD_LIMIT:
            break
        stop += 1
    return start, stop


def _is_letter(character: str) -> bool:
    return character.isalnum() or character in ("_", "'", "’")


def snippets(text: str, words: Sequence[KeptWord], context: int = 40) -> list[Snippet]:
    """Stretches of the document with `context` characters on each side of the kept words.

    Stretches that touch become one. They begin and end at white space where there is some.
    """
    found: list[Snippet] = []
    for word in words:
        start, stop = _widen(text, word.start, word.stop, context)
        if found and start <= found[-1].stop:
            last = found[-1]
            found[-1] = Snippet(last.start, max(last.stop, stop), (*last.words, word))
        else:
            found.append(Snippet(start, stop, (word,)))
    return found


def _widen(text: str, start: int, stop: int, context: int) -> tuple[int, int]:
    left, right = max(0, start - context), min(len(text), stop + context)
    if left > 0 and (gap := text.find(" ", left, start)) >= 0:
        left = gap + 1
    if right < len(text) and (gap := text.rfind(" ", stop, right)) >= 0:
        right = gap
    return left, right


def cut(text: str, snippet: Snippet) -> list[tuple[str, KeptWord | None]]:
    """The snippet's text in pieces: each kept word with itself, what lies between with None.

    Of two kept words that overlap, the first has the characters they share.
    """
    pieces: list[tuple[str, KeptWord | None]] = []
    at = snippet.start
    for word in snippet.words:
        if word.stop <= at:
            continue
        if at < word.start:
            pieces.append((text[at : word.start], None))
        pieces.append((text[max(at, word.start) : word.stop], word))
        at = word.stop
    if at < snippet.stop:
        pieces.append((text[at : snippet.stop], None))
    return pieces


@dataclass(frozen=True)
class PageAnswer:
    """One question on a page: what was asked, answered and kept."""

    question: str
    answer: str
    words: Sequence[KeptWord]
    note: str = ""
    """A line below the answer: settings, times."""


def selection_page(title: str, text: str, answers: Sequence[PageAnswer]) -> str:
    """An HTML page that paints the kept words of each question on the document.

    The page needs nothing else: no script, no network. Everything that comes from the document,
    the questions and the answers is escaped.
    """
    sections = "\n".join(_section(i, text, answer) for i, answer in enumerate(answers, 1))
    escaped = html.escape(title)
    return PAGE.format(title=escaped, style=STYLE, shades=_shade_styles(), sections=sections)


def _section(number: int, text: str, answer: PageAnswer) -> str:
    words = answer.words
    scores = [word.score for word in words]
    low, high = (min(scores), max(scores)) if scores else (0.0, 0.0)

    def shade(word: KeptWord) -> int:
        share = (word.score - low) / (high - low) if high > low else 1.0
        return min(SHADES - 1, int(share * SHADES))

    painted, number_of = [], {word: i for i, word in enumerate(words)}
    for piece, word in cut(text, Snippet(0, len(text), tuple(words))):
        if word is None:
            painted.append(html.escape(piece))
            continue
        shown = html.escape(piece) if piece.strip() else piece.replace("\n", "⏎\n")
        painted.append(
            f'<mark class="s{shade(word)}" id="q{number}w{number_of[word]}" '
            f'title="{_positions(word)}, score {word.score:.3f}">{shown}</mark>'
        )
    rows = "".join(
        f'<li><a href="#q{number}w{number_of[word]}">{html.escape(_visible(word.text))}</a> '
        f'<span class="s{shade(word)}">{word.score:.3f}</span> {_positions(word)}</li>'
        for word in sorted(words, key=lambda word: -word.score)
    )
    kept = f"{len(words)} words kept, scores {low:.3f} to {high:.3f}" if words else "nothing kept"
    note = f'<p class="note">{html.escape(answer.note)}</p>' if answer.note else ""
    return (
        f'<section>\n<h2 dir="auto">{html.escape(answer.question)}</h2>\n'
        f'<p class="answer" dir="auto">{html.escape(answer.answer)}</p>\n{note}\n'
        f"<details{' open' if len(words) <= 40 else ''}><summary>{kept}</summary>"
        f"<ol>{rows}</ol></details>\n"
        f'<div class="document" dir="auto">{"".join(painted)}</div>\n</section>'
    )


def _positions(word: KeptWord) -> str:
    several = "s" if len(word.positions) > 1 else ""
    return f"position{several} {', '.join(map(str, word.positions))}"


def _visible(text: str) -> str:
    """White space alone shown as signs."""
    return text if text.strip() else text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥")


def _shade_styles() -> str:
    """A class for each step of colour: the amount of the accent in the background."""
    amounts = [15 + round(i * 60 / (SHADES - 1)) for i in range(SHADES)]
    return "\n".join(
        f".s{i} {{ background: color-mix(in srgb, var(--accent) {amount}%, var(--paper)); }}"
        for i, amount in enumerate(amounts)
    )


STYLE = """\
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #22201c; --soft: #6d675c;
  --line: #ddd8cc; --accent: #f2a33a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1b1a18; --ink: #e9e4d8; --soft: #9c9587; --line: #3a3732; --accent: #a85c16; } }
body { margin: 0 auto; padding: 2rem 1.25rem 6rem; max-width: 46rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .25rem; }
.answer { font-size: 1.15rem; margin: 0; white-space: pre-wrap; }
.note, summary, li { color: var(--soft); font-size: .875rem; }
li a { color: var(--ink); }
li span { padding: 0 .35em; border-radius: .25em; color: var(--ink); }
.document { margin-top: 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; font-family: Georgia, serif; }
mark { color: inherit; border-radius: .2em; padding: .05em 0; }
mark:target { outline: 2px solid var(--ink); }"""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
{shades}
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""
