"""Documents shortened: the last tokens, the middle cut out, and the passages that BM25 finds."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest

from remamba.methods.passages import BM25, Excerpt, Passages, last, middle, without_middle
from remamba.text import encode
from tests.tiny import TEXT, tiny_tokenizer

PARTS = (
    *("a", "word ", "Tom ", "Helen ", "é", "東", "🙂", "。", ". ", "! ", " ", "   "),
    *("\n", "\n\n", "\r\n\r\n"),
)


def tokens(text: str) -> int:
    return len(encode(tiny_tokenizer(), text, begins=False).ids)


def best(text: str, query: str, count: int) -> Excerpt:
    return Passages(text, encode(tiny_tokenizer(), text, begins=False).offsets, count).best(query)


def units(text: str, count: int) -> list[str]:
    found = Passages(text, encode(tiny_tokenizer(), text, begins=False).offsets, count).units
    return [text[unit.start : unit.stop] for unit in found]


def test_it_needs_no_torch() -> None:
    code = "import sys, remamba.methods.passages; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_by_hand() -> None:
    """k1 = 1.5, b = 0.75; the units have 4, 2 and 6 words, 4 on average."""
    index = BM25(["Red dog, RED cat", "a dog", "nothing that is asked for here"])
    red = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))  # one of three holds it
    dog = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # two of three
    first = red * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 4 / 4))
    first += dog * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 4 / 4))
    second = dog * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 4))
    assert index.scores("red dog?") == pytest.approx([first, second, 0.0])
    assert index.scores("red red dog dog") == index.scores("red dog")
    assert index.scores("") == index.scores("unknown words") == [0.0, 0.0, 0.0]
    assert BM25([]).scores("red") == [] and BM25(["", "..."]).scores("red") == [0.0, 0.0]


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["Кошка спит", "Собака ЛАЕТ"], "лает"),
        (["Η ΓΑΤΑ", "ο ΔΡΟΜΟΣ"], "δρομος"),
        (["貓在睡覺。", "狗在公園裡。"], "公園在哪裡"),  # no spaces between words
        (["ねこがいる", "いぬがはしる"], "はしる"),
        (["the cat", "a cafe\u0301"], "café"),  # the accent is a character of its own
        (["Strasse", "the STRAẞE"], "straße the"),
    ],
)
def test_words_of_other_scripts(texts: list[str], query: str) -> None:
    first, second = BM25(texts).scores(query)
    assert second > first


def test_the_best_paragraphs_in_the_documents_order() -> None:
    one, two, three, four = "Ada has an owl.", "No word.", "An owl, the owl of Ada.", "The end."
    text = "\n\n".join((one, two, three, four))
    found = best(text, "Whose owl? Ada's.", tokens(one) + tokens("\n\n") + tokens(three))
    assert found.text == f"{one}\n\n{three}"
    assert found.spans == [(0, len(one) + 2), (text.index(three), text.index(four) - 2)]
    together = f"{two}\n\n{three}\n\n{four}"
    assert best(text, "word owl end", tokens(together)).text == together


def test_the_budget_is_exact() -> None:
    text = "Ada has an owl.\n\nTom has a dog, too.\n\nThe end of it."
    for query, unit in (("Ada", "Ada has an owl."), ("dog", "Tom has a dog, too.")):
        found = best(text, query, tokens(unit))
        assert found.text == unit and len(found.tokens) == tokens(unit)
        assert best(text, query, tokens(unit) - 1).text != unit
    both = "Ada has an owl.\n\nTom has a dog, too."
    assert best(text, "Ada dog", tokens(both)).text == both
    assert "Ada" not in best(text, "dog dog", tokens(both) - 1).text
    assert best(text, "dog", tokens(text)).text == text
    whole = f"{text}\n\n"
    assert best(whole, "dog", 1000) == (whole, [(0, len(whole))], list(range(tokens(whole))))


def test_ties_go_to_the_earlier_unit() -> None:
    text = "One dog.\n\nTwo dog.\n\nOld dog."
    most = max(tokens(unit) for unit in text.split("\n\n"))
    for query in ("dog", "", "zebra"):
        assert best(text, query, most).text.startswith("One dog.")
    assert best(text, "Old", most).text == "Old dog."


def test_a_document_of_one_paragraph_has_sentences() -> None:
    said = ["Ada has an owl!", 'Tom said "no."', "Is it so?", "A line", "そうです。", "はい。"]
    text = f"{said[0]} {said[1]} {said[2]}\n{said[3]}\n{said[4]}{said[5]}"
    assert units(text, max(map(tokens, said)) + 1) == said
    assert units(f"{text}\n\nMore.", 1000) == [text, "More."]


@pytest.mark.parametrize("gap", ["\n\n", "\r\n\r\n", "\n \t\n", "\r\n\r\n\r\n", "\n\n\n"])
def test_what_parts_paragraphs(gap: str) -> None:
    one, two, three = "Ada has\r\nan owl. So?", "    Tom, indented.", "The end."
    text = f"\n\n{one}{gap}{two}{gap}{three}{gap}"
    assert units(text, 1000) == [one, two, three]
    assert best(text, "Ada Tom", tokens(f"{one}{gap}{two}")).text == f"{one}{gap}{two}"
    assert best(text, "Ada end", tokens(one + gap + three)).text == f"{one}{gap}{three}"


def test_a_unit_longer_than_the_budget_is_cut() -> None:
    words = " ".join(f"w{i}" for i in range(40))
    text = f"Short one.\n\nTom has a dog. {words} the dulcimer. Helen sings.\n\nThe end."
    count = tokens("Tom has a dog.") + 2
    found = units(text, count)
    assert found[0] == "Short one." and found[-1] == "The end."
    assert found[1] == "Tom has a dog." and found[-2] == "Helen sings."
    assert " ".join(found[2:-2]) == f"{words} the dulcimer."  # cut between words
    assert max(map(tokens, found)) <= count
    assert "dulcimer" in best(text, "dulcimer", count).text
    # one word: between characters, and a character of more tokens than fit is left out
    assert "".join(units("東京" * 9, 7)) == "東京" * 9
    assert units("a🙂b" * 3, 1) == ["a", "b"] * 3
    assert best("🙂🙂", "x", 1) == Excerpt("", [], [])


@pytest.mark.parametrize("text", ["", " ", "\n\n \n\n"])
def test_documents_without_a_word(text: str) -> None:
    assert best(text, "dog", 1).text in (text, "")


def test_an_excerpt_is_what_its_spans_hold() -> None:
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(PARTS, k=draw.randrange(80)))
        ids, offsets = encode(tiny_tokenizer(), text, begins=False)
        count = draw.randrange(1, 40)
        query = draw.choice(("Tom", "Helen word", "", "東"))
        found = (last(text, offsets, count), middle(text, offsets, count), best(text, query, count))
        assert best(text, query, count) == found[2]
        for excerpt in found:
            assert excerpt.text == "".join(text[start:stop] for start, stop in excerpt.spans)
            edges = [edge for span in excerpt.spans for edge in span]
            assert edges == sorted(edges) and all(a < b for a, b in excerpt.spans)
            assert excerpt.tokens == sorted(set(excerpt.tokens))
            assert len(excerpt.tokens) <= (count if len(ids) > count else len(ids))
        if len(ids) <= count:
            assert {excerpt.text for excerpt in found} == {text}


def test_last_and_middle_are_the_tokens_decoded() -> None:
    """But for characters that the cut goes through, of which a decoder writes marks."""
    draw, decode = random.Random(1), tiny_tokenizer().decode
    for _ in range(400):
        text = "".join(draw.choices(PARTS, k=draw.randrange(20, 80)))
        ids, offsets = encode(tiny_tokenizer(), text, begins=False)
        count = draw.randrange(2, 20)
        end, cut = last(text, offsets, count), middle(text, offsets, count)
        if len(ids) <= count:
            continue
        assert [ids[i] for i in end.tokens] == ids[-count:]
        assert end.text == decode(ids[-count:]).lstrip("\ufffd")
        half = count // 2
        assert [ids[i] for i in cut.tokens] == [*ids[:half], *ids[-half:]]
        first, second = decode(ids[:half]), decode(ids[-half:])
        assert cut.text == first.rstrip("\ufffd") + second.lstrip("\ufffd")


def test_offsets_without_the_space_before_a_word() -> None:
    """As GPT-NeoX's tokenizers give them: the space goes with the word behind it."""
    text = "Tom has a dog.\n\nAda has an owl."
    ids, offsets = encode(tiny_tokenizer(), text, begins=False)
    trimmed = []
    for start, stop in offsets:
        word = text[start:stop]
        trimmed.append((start + len(word) - len(word.lstrip()), stop))
    assert trimmed != offsets
    for count in range(2, len(ids)):
        assert last(text, trimmed, count) == last(text, offsets, count)
        assert middle(text, trimmed, count) == middle(text, offsets, count)
        for query in ("dog", "owl"):
            found, same = (Passages(text, o, count).best(query) for o in (trimmed, offsets))
            assert found == same


def test_without_middle_keeps_both_halves() -> None:
    ids = list(range(9000))
    assert without_middle(ids, 5500) == ids[:2750] + ids[-2750:]
    assert without_middle(ids, 9000) is ids
    assert without_middle(ids, 8999) == ids[:4499] + ids[-4499:]  # an odd count loses one
    assert without_middle(ids, 1) == []
    assert middle(TEXT, encode(tiny_tokenizer(), TEXT, begins=False).offsets, 1).text == ""
