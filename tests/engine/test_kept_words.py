"""The selection as words, snippets and a page."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest

from remamba.engine.kept_words import SAME_SCORE, KeptWord, Place, cut, kept_words, places, snippets
from remamba.engine.page import PageAnswer, selection_page
from remamba.methods.selection import WINDOW_STEP
from remamba.text import encode
from tests.tiny import TEXT, tiny_tokenizer


def words_at(text: str, *places: tuple[int, int]) -> list[str]:
    """The kept words when tokens lie at these places."""
    kept = [(i, 0.5) for i in range(len(places))]
    return [word.text for word in kept_words(text, places, kept)]


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ((4, 8), "Hill"),  # a space before, as byte-level tokens have it
        ((5, 6), "Hill"),
        ((8, 10), "O'Har"),
        ((11, 12), "O'Har"),
        ((14, 15), ","),
        ((15, 16), " "),
        ((16, 18), "東京"),
        ((18, 19), "\n"),
    ],
    ids=str,
)
def test_a_token_becomes_its_word(place: tuple[int, int], word: str) -> None:
    assert words_at("Tom Hill O'Har, 東京\n", place) == [word]


def test_tokens_of_one_word_come_together() -> None:
    text = "Helen Archer plays"
    offsets = [(0, 3), (3, 5), (5, 8), (8, 12), (12, 18)]
    found = kept_words(text, offsets, [(1, 0.2), (2, 0.9), (3, 0.4), (77, 1.0)])
    assert found == [
        KeptWord("Helen", 0, 5, (1,), 0.2),
        KeptWord("Archer", 6, 12, (2, 3), 0.9),
    ]
    assert kept_words(text, offsets, []) == []
    assert kept_words(text, [(0, 0), *offsets], [(0, 1.0)]) == []  # a bos is no word


def test_a_line_without_spaces_is_no_word() -> None:
    text = "京" * 500
    (word,) = kept_words(text, [(250, 251)], [(0, 1.0)])
    assert len(word.text) <= 40
    assert word.start <= 250 < word.stop


def test_kept_words_of_a_tokenized_document() -> None:
    encoded = encode(tiny_tokenizer(), TEXT)
    kept = [(i, i / 100) for i in range(len(encoded.ids))]
    found = kept_words(TEXT, encoded.offsets, kept)
    assert {"Tom", "Paris", "café", "façades", "東京", "🙂"} <= {word.text for word in found}
    assert sorted(p for word in found for p in word.positions) == list(range(len(encoded.ids)))
    assert [w.start for w in found] == sorted(w.start for w in found)
    assert all(TEXT[w.start : w.stop] == w.text for w in found)


def test_neighbours_of_one_score_are_a_place() -> None:
    def word(positions: tuple[int, ...], score: float) -> KeptWord:
        return KeptWord("w" * len(positions), positions[0], positions[-1] + 1, positions, score)

    assert pytest.approx(16 * WINDOW_STEP) == SAME_SCORE
    window = [word((i,), 0.77 - (45 - i) * 1e-6) for i in range(30, 46)]
    higher = [word((46, 48), 0.78), word((49,), 0.78)]
    apart = [word((51,), 0.78), word((52,), 0.78 - 17e-6)]
    found = places([*window, *higher, *apart])
    assert [place.words for place in found] == [
        tuple(window),
        tuple(higher),
        *((one,) for one in apart),
    ]
    assert found[0].positions == tuple(range(30, 46)) and found[0].score == 0.77
    assert found[1] == Place(tuple(higher)) and found[1].positions == (46, 48, 49)
    assert places([]) == []


def test_snippets_join_and_cover() -> None:
    text = " ".join(f"word{i}" for i in range(100))
    place = {i: text.index(f"word{i}") for i in (0, 40, 42, 99)}
    words = [KeptWord(f"word{i}", at, at + len(f"word{i}"), (i,), 0.5) for i, at in place.items()]
    found = snippets(text, words, context=20)
    assert [len(s.words) for s in found] == [1, 2, 1]
    for snippet in found:
        pieces = cut(text, snippet)
        shown = text[snippet.start : snippet.stop]
        assert "".join(piece for piece, _ in pieces) == shown
        assert [word for _, word in pieces if word] == list(snippet.words)
        assert not shown.startswith(" ") and not shown.endswith(" ")
        assert all(w.start - snippet.start <= 20 for w in snippet.words[:1])


def test_words_that_overlap_are_cut_once() -> None:
    text = "abcdefgh"
    words = [KeptWord("abcd", 0, 4, (0,), 1.0), KeptWord("cdef", 2, 6, (1,), 0.5)]
    inside = KeptWord("cd", 2, 4, (2,), 0.1)
    (snippet,) = snippets(text, [words[0], inside, words[1]], context=8)
    pieces = cut(text, snippet)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, word in pieces if word] == ["abcd", "ef"]


class Page(HTMLParser):
    """The tags of a page, and the text of the documents on it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.documents: list[str] = []
        self.marked: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"]] if found.get("href") else []
        if found.get("class") == "document":
            self.documents.append("")
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["div"], ["mark"]):
            self.documents[-1] += data
        if self.open[-1:] == ["mark"]:
            self.marked.append(data)


def test_page_paints_the_document_and_escapes() -> None:
    text = 'Tom <script>alert(1)</script> & "Paris" {style}\nline'
    offsets = [(m.start(), m.end()) for m in re.finditer(r"\w+|\W", text)]
    kept = [
        (0, 0.1),
        (2, 0.3),
        (3, 0.9),
        (offsets.index((text.index("Paris"), text.index("Paris") + 5)), 0.5),
    ]
    words = kept_words(text, offsets, kept)
    answers = [
        PageAnswer("<b>who?</b>", "<i>Tom</i>", words, "plain Mamba: </section>"),
        PageAnswer("second", "", []),
    ]
    source = selection_page("report <1>.txt", text, answers)
    page = Page()
    page.feed(source)
    assert not page.open
    assert not {"script", "b", "i", "img", "link"} & set(page.tags)
    assert page.documents == [text, text]
    assert page.marked == ["Tom", "<", "script", "Paris"]
    assert {link.removeprefix("#") for link in page.links} == set(page.ids)
    assert html.escape("<b>who?</b>") in source
    assert 'score 0.300">&lt;</mark>' in source
    # self-contained: nothing is fetched, and both light and dark are cared for
    assert not re.search(r"(src|href)=\"(?!#)|@import|url\(|https?:", source)
    assert "prefers-color-scheme: dark" in source and "default-src 'none'" in source
    # the best of the scores has the strongest colour
    assert re.search(r'<mark class="s4"[^>]*score 0.900">script', source)
    assert re.search(r'<mark class="s0"[^>]*score 0.100">Tom', source)


def test_page_shows_kept_white_space() -> None:
    source = selection_page(
        "t", "a\nb c", [PageAnswer("q", "a", [KeptWord("\n", 1, 2, (1,), 0.5)])]
    )
    assert "⏎\n</mark>" in source
