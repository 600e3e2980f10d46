"""Prompts in the benchmarks' own words, cut as the protocols say."""

from __future__ import annotations

from typing import Any

import pytest

from remamba.errors import InputError
from remamba.evals import leval, longbench
from remamba.evals.items import Item, Prompt
from remamba.evals.prompting import Prompting, cut_middle, cut_words
from remamba.methods.passages import without_middle
from tests.tiny import TEXT, tiny_tokenizer


def item(document: str, before: str = "Read: ", after: str = "\nQ: who?\nA:") -> Item:
    return Item("1", Prompt(before, document, after), ["x"], "who?")


def encode(text: str) -> list[int]:
    return tiny_tokenizer()(text, verbose=False)["input_ids"]


@pytest.mark.parametrize("dataset", longbench.DATASETS)
def test_longbench_prompts_are_the_templates(dataset: str) -> None:
    context, question = "a {context} with {braces} and {input}", "what is {this}?"
    template = longbench.templates()[dataset]
    found = longbench.fill(template, context, question)
    assert found.text == template.format(context=context, input=question)
    assert found.document == context


def test_lengths_of_answers() -> None:
    asked = Prompting(tiny_tokenizer(), "longbench-e")
    found = [asked.new_tokens(name) for name in longbench.DATASETS]
    assert found == [128, 64, 32, 32, 512, 512, 64, 32, 128, 32, 32, 64, 64]
    assert Prompting(tiny_tokenizer(), "leval", "authors").new_tokens("tpo") == 500
    assert Prompting(tiny_tokenizer(), "leval", "official").new_tokens("tpo") == 512


def test_leval_prompts() -> None:
    said = leval.instructions()
    authors = leval.prompt("coursera", "DOC", "Q1", "authors").text
    assert authors == (
        said["coursera"]["before"]
        + "Document is as follows. DOC \n"
        + said["coursera"]["after"]
        + "\n \nQuestion: Q1  \nAnswer:"
    )
    assert said["coursera"]["before"].startswith("Now you are given a very long document.")
    assert said["coursera"]["after"].startswith("Above is a very long document.")
    official = leval.prompt("tpo", "DOC", "Q1", "official").text
    assert official == (
        said["tpo"]["before"] + "Document is as follows. DOC \nQuestion: Q1.  Please directly give "
        "answer without any additonal output or explanation \nAnswer:"
    )
    assert leval.prompt("gsm100", "DOC", "Q1", "authors").text == (
        said["gsm100"]["before"] + "DOC\n\n" + said["gsm100"]["after"] + "\nQ1"
    )
    assert leval.prompt("codeU", "DOC", "Q1", "official").text.endswith("DOC\n\nQ1")


def test_authors_cut_of_9000_tokens_to_6k() -> None:
    ids = encode(TEXT * 300)[:9000]
    limit = Prompting(tiny_tokenizer(), "longbench-e", max_length=6000).limit
    assert len(ids) == 9000 and len(without_middle(ids, limit)) == 5500
    text = tiny_tokenizer().decode(ids)
    again = encode(cut_middle(tiny_tokenizer(), text, limit))
    assert abs(len(again) - 5500) <= 4  # the joint


@pytest.mark.parametrize(
    ("task", "protocol", "limit"),
    [
        ("longbench-e", "authors", 5500),
        ("longbench-e", "official", 6000),
        ("leval", "authors", 5500),
        ("leval", "official", 5488),
    ],
)
def test_limits(task: str, protocol: str, limit: int) -> None:
    assert Prompting(tiny_tokenizer(), task, protocol).limit == limit


@pytest.mark.parametrize("length", [0, 500, 501])
def test_no_room_for_a_prompt(length: int) -> None:
    with pytest.raises(InputError, match=f"--max-length {length} leaves no prompt"):
        Prompting(tiny_tokenizer(), "leval", max_length=length)


def test_short_prompts_are_not_touched() -> None:
    question = item(" \t" + TEXT + "\ufb01\n\n")
    found = Prompting(tiny_tokenizer(), "longbench-e").text("qasper", question)
    assert found.text == question.prompt.text
    assert found.text[found.split :] == question.prompt.after


def test_long_prompts_lose_their_middle() -> None:
    question = item(TEXT * 9)
    prompting = Prompting(tiny_tokenizer(), "leval", max_length=601)
    found = prompting.text("tpo", question)
    ids = encode(question.prompt.text)
    decode = tiny_tokenizer().decode
    assert found.text == decode(ids[:50]) + decode(ids[-50:])
    assert found.text[found.split :] == question.prompt.after
    assert "first and last 50," in prompting.describe()


def test_a_cut_question_has_no_place() -> None:
    question = item(TEXT * 9, after="\nQ: " + TEXT * 9)
    assert Prompting(tiny_tokenizer(), "leval", max_length=600).text("tpo", question).split is None


def test_official_cut_of_leval() -> None:
    words = [f"w{i}" for i in range(3000)]
    document = " ".join(words)
    tokens = len(encode(document))
    assert cut_words(tiny_tokenizer(), document, tokens, from_left=False) == document
    kept = cut_words(tiny_tokenizer(), document, 2900, from_left=False).split(" ")
    assert kept == words[: len(kept)] and len(encode(" ".join(kept))) <= 2900
    assert (2900 - len(kept)) % 250 == 0
    kept = cut_words(tiny_tokenizer(), document, 2900, from_left=True).split(" ")
    assert kept == words[-len(kept) :]
    prompting = Prompting(tiny_tokenizer(), "leval", "official", max_length=512 + 800)
    question = item(document)
    found = prompting.text("codeU", question)
    assert found.text.endswith(words[-1] + question.prompt.after)
    assert prompting.text("tpo", question).text.startswith("Read: w0 w1")


def test_official_protocol_wraps_chat_models() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<u>{{ messages[0]['content'] }}</u>"
    try:
        prompting = Prompting(tokenizer, "longbench-e", "official")
        question = item("Tom.")
        assert prompting.text("qasper", question).text == f"<u>{question.prompt.text}</u>"
        assert prompting.text("trec", question).text == question.prompt.text
        authors = Prompting(tokenizer, "longbench-e")
        assert authors.text("qasper", question).text == question.prompt.text
    finally:
        tokenizer.chat_template = None


def test_shortened_to_its_end_or_without_its_middle() -> None:
    question, decode, ids = item(TEXT * 3), tiny_tokenizer().decode, encode(TEXT * 3)
    kept = {"last": decode(ids[-20:]), "middle": decode(ids[:10]) + decode(ids[-10:])}
    for name, document in kept.items():
        found = Prompting(tiny_tokenizer(), "leval", shorten=name, shorten_tokens=20)
        text = found.text("tpo", question).text
        assert text == "Read: " + document + question.prompt.after
        assert "tokens of a document are read" in found.describe() and " 20 " in found.describe()
        whole = Prompting(tiny_tokenizer(), "leval", shorten=name, shorten_tokens=10_000)
        assert whole.text("tpo", question).text == question.prompt.text


def test_shortened_to_what_the_question_names() -> None:
    first, second = "Alpha keeps a red key.", "Omega keeps a blue key."
    filler = "\n\n".join(f"word{i} and other words" for i in range(50))
    document = f"{first}\n\n{filler}\n\n{second}\n\n{filler}"
    asked = {"shorten": "bm25", "shorten_tokens": len(encode(f"{first}\n\n{second}"))}
    question = item(document, after="\nAnswer:")._replace(question="Who keeps the key?")
    prompting = Prompting(tiny_tokenizer(), "leval", **asked)
    found = prompting.text("tpo", question)
    assert found.text == f"Read: {first}\n\n{second}\nAnswer:"
    assert found.text[found.split :] == "\nAnswer:"
    # a question that stands in the prompt alone
    asked["shorten_tokens"] = len(encode(second))
    prompting = Prompting(tiny_tokenizer(), "leval", **asked)
    question = item(document, after="\nOmega? A:")._replace(question=" ")
    assert prompting.text("tpo", question).text == f"Read: {second}\nOmega? A:"


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("truncate", 20, "--shorten truncate is now called last; give --shorten last"),
        ("first", 20, "--shorten first: choose of none, last, middle, bm25"),
        ("bm25", 0, "--shorten-tokens 0 must be at least 1"),
        ("middle", 1, "--shorten-tokens 1 must be at least 2"),
    ],
)
def test_ways_to_shorten_that_cannot_be_used(name: str, count: int, said: str) -> None:
    with pytest.raises(InputError) as error:
        Prompting(tiny_tokenizer(), "leval", shorten=name, shorten_tokens=count)
    assert str(error.value) == said


def test_cut_middle_counts_special_tokens_where_asked() -> None:
    class Counting:
        def __call__(self, text: str, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0] * add_special_tokens + [1] * len(text)}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join("" if i == 0 else "x" for i in ids)

    assert cut_middle(Counting(), "xxxx", 4, special=False) == "xxxx"
    assert cut_middle(Counting(), "xxxx", 4) == "xxx"
