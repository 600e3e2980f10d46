"""The selection painted on the document: one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from remamba.engine.kept_words import KeptWord, Snippet, cut

SHADES = 5
"""Steps of colour, by score."""


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
