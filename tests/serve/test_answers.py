"""What the server answers is what the engine answers, to the byte; as OpenAI's client reads it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from remamba import Ask
from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.text import plain_chat_template
from tests.serve.conftest import Running, make_reader, serving
from tests.tiny import TEXT, tiny_tokenizer

QUESTION = "Who lives in Lisbon?"
DRAWN = {"temperature": 1.0, "seed": 5, "max_tokens": 12}


def options(**changes: Any) -> SamplingOptions:
    return SamplingOptions(**{"max_new_tokens": 12, "temperature": 1.0, "seed": 5} | changes)


def chat(client: openai.OpenAI, parts: Any, model: str = "tiny", **more: Any) -> Any:
    messages = [{"role": "user", "content": parts}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"temperature": 1.0, "seed": 5, "max_tokens": 12} | more
    )  # fmt: skip


def about(document: str, question: str = QUESTION) -> list[dict[str, Any]]:
    mark = {"mode": "explicit"}
    return [
        {"type": "text", "text": document, "prompt_cache_breakpoint": mark},
        {"type": "text", "text": question},
    ]


def test_completions_equal_the_engines(client: openai.OpenAI) -> None:
    """Texts and tokens, one and several, alone and in a crowd, whole and streamed."""
    reader = make_reader()
    ids = reader.tokenizer(TEXT)["input_ids"]
    prompts: list[Any] = [TEXT, "Tom", [TEXT, "Tom", "東京"], ids, [ids, ids[:3]]]

    def expected(prompt: Any) -> list[str]:
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        each = prompt if several else [prompt]
        engine = Engine(reader.model, reader.tokenizer)
        requests = [Request(prompt=p, options=options(), method="plain") for p in each]
        return [done.text for done in engine.run(requests)]

    def answered(prompt: Any) -> list[str]:
        done = client.completions.create(model="tiny", prompt=prompt, **DRAWN)
        assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
        texts = [choice.text for choice in done.choices]
        streamed = dict.fromkeys(range(len(texts)), "")
        for chunk in client.completions.create(model="tiny", prompt=prompt, stream=True, **DRAWN):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        assert list(streamed.values()) == texts
        return texts

    wanted = [expected(prompt) for prompt in prompts]
    assert len({text for texts in wanted for text in texts}) > 3
    assert [answered(prompt) for prompt in prompts] == wanted
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(answered, prompts * 2)) == wanted * 2


@pytest.mark.parametrize("method", ["", ":plain", ":chunks", ":last", ":bm25", ":last+remamba"])
def test_questions_equal_the_readers(client: openai.OpenAI, method: str) -> None:
    """By each way of reading, whole and streamed; the second time from the memory."""
    reader = make_reader()
    own = method[1:] or None
    wanted = reader.answer([Ask(TEXT * 3, QUESTION, method=own, options=options())])[0]
    told = []
    for _ in range(2):
        done = chat(client, about(TEXT * 3), f"tiny{method}", extra_body={"remamba_kept": True})
        (choice,), (facts,) = done.choices, done.remamba["answers"]
        assert choice.message.content == wanted.text
        assert choice.finish_reason == "length"
        kept = wanted.kept and [(w.text, w.start, w.stop) for w in wanted.kept]
        found = facts["kept"] and [(w["text"], w["start"], w["end"]) for w in facts["kept"]]
        assert (kept or None) == (found or None)
        scores = [word.score for word in wanted.kept or ()]
        assert [word["score"] for word in facts["kept"] or ()] == pytest.approx(scores, rel=1e-5)
        passages = wanted.passages and [{"start": p.start, "end": p.stop} for p in wanted.passages]
        assert (passages or None) == (facts["passages"] or None)
        told.append((facts["memory"], done.usage))
        stream = chat(client, about(TEXT * 3), f"tiny{method}", stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == wanted.text
    usage = told[1][1]
    assert usage.prompt_tokens == wanted.prompt_tokens
    assert usage.completion_tokens == len(wanted.token_ids)
    details = usage.prompt_tokens_details
    if method == ":bm25":  # it reads anew for each question
        assert [memory for memory, _ in told] == [None, None]
        assert (details.cached_tokens, details.cache_write_tokens) == (0, 0)
    else:
        assert told[1][0] == "ram"
        assert 0 < details.cached_tokens < usage.prompt_tokens
        assert details.cache_write_tokens == 0


def test_usage_tells_what_was_read() -> None:
    """The first question reads, the second one reuses; one memory serves both ways of reading."""
    with serving() as server, server.client() as client:
        document = len(tiny_tokenizer()(TEXT * 2)["input_ids"])
        told = []
        for model in ("tiny", "tiny", "tiny:plain"):
            done = chat(client, about(TEXT * 2), model)
            details = done.usage.prompt_tokens_details
            told.append((details.cached_tokens, details.cache_write_tokens))
            assert done.usage.total_tokens == done.usage.prompt_tokens + 12
        assert told == [(0, document), (document, 0), (document, 0)]
        # without a mark, a document is kept when it comes again; a short one never
        long = TEXT * 20
        parts = [{"type": "text", "text": long}, {"type": "text", "text": QUESTION}]
        seen = [chat(client, parts).remamba["answers"][0]["memory"] for _ in range(3)]
        assert seen == [None, "read", "ram"]
        short = [{"type": "text", "text": "Anna"}, {"type": "text", "text": QUESTION}]
        assert {chat(client, short).remamba["answers"][0]["memory"] for _ in range(3)} == {None}


def test_several_answers_are_the_seeds_above(client: openai.OpenAI) -> None:
    """n = 3 equals three requests with seeds one higher each; streamed too, with usage."""
    alone = [chat(client, about(TEXT), seed=seed).choices[0].message.content for seed in (5, 6, 7)]
    assert len(set(alone)) == 3
    done = chat(client, about(TEXT), n=3)
    assert [choice.message.content for choice in done.choices] == alone
    assert done.usage.completion_tokens == 36
    texts, ends, usage = ["", "", ""], [0, 0, 0], []
    for chunk in chat(
        client, about(TEXT), n=3, stream=True, stream_options={"include_usage": True}
    ):
        usage += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason is not None
    assert texts == alone and ends == [1, 1, 1]
    assert [one.completion_tokens for one in usage] == [36]


def test_stop_is_never_in_the_text(client: openai.OpenAI) -> None:
    text = chat(client, about(TEXT)).choices[0].message.content
    stop = text[len(text) // 2 :][:2]
    done = chat(client, about(TEXT), stop=[stop, "never to be met"])
    assert done.choices[0].message.content == text[: text.index(stop)]
    assert done.choices[0].finish_reason == "stop"
    pieces = list(chat(client, about(TEXT), stop=stop, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert streamed == text[: text.index(stop)]


def test_likelihoods_equal_the_engines(client: openai.OpenAI) -> None:
    """Of drawn tokens and of an echoed prompt, in both shapes, whole and streamed."""
    reader = make_reader()
    request = Request(
        prompt=TEXT, options=options(logprobs=3, temperature=0.0), method="plain", prompt_logprobs=3
    )
    (wanted,) = Engine(reader.model, reader.tokenizer).run([request])
    assert wanted.logprobs and wanted.prompt_logprobs
    values = [one and one.logprob for one in [*wanted.prompt_logprobs, *wanted.logprobs]]
    given = {"model": "tiny", "prompt": TEXT, "max_tokens": 12, "logprobs": 3, "echo": True}
    (choice,) = client.completions.create(**given).choices
    assert choice.text == TEXT + wanted.text
    assert choice.logprobs.token_logprobs == values
    for token, logprob, likeliest in zip(
        choice.logprobs.tokens, values, choice.logprobs.top_logprobs, strict=True
    ):
        assert likeliest is None or likeliest[token] <= max(likeliest.values())
        assert likeliest is None or (logprob is not None and len(likeliest) in (3, 4))
    streamed: list[Any] = []
    text = ""
    for chunk in client.completions.create(**given, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.token_logprobs
    assert (text, streamed) == (choice.text, values)
    (silent,) = client.completions.create(**given | {"max_tokens": 0}).choices
    assert (silent.text, silent.logprobs.token_logprobs) == (
        TEXT,
        values[: len(wanted.prompt_logprobs)],
    )
    # as lm-evaluation-harness asks: tokens, one more of them, and its own seed
    ids = reader.tokenizer(TEXT)["input_ids"]
    scored = client.completions.create(
        model="tiny", prompt=[ids, ids[:9]], max_tokens=1, logprobs=1, echo=True, seed=1234,
        temperature=0,
    )  # fmt: skip
    for choice, length in zip(scored.choices, (len(ids), 9), strict=True):
        assert choice.logprobs.token_logprobs[:-1][1:] == pytest.approx(values[1:length], rel=1e-5)
        assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == length + 1
    done = chat(client, about(TEXT), logprobs=True, top_logprobs=2, temperature=0)
    content = done.choices[0].logprobs.content
    ask = Ask(TEXT, QUESTION, options=options(temperature=0.0))
    (answer,) = reader.answer([ask])
    texts = [reader.tokenizer.decode([token]) for token in answer.token_ids]
    names = [f"token_id:{t}" for t in answer.token_ids]
    assert [one.token for one in content] == [
        name if "\ufffd" in text else text for text, name in zip(texts, names, strict=True)
    ]
    assert all(one.top_logprobs[0].logprob == one.logprob for one in content)  # greedy
    whole = [one for one in content if one.bytes is not None]
    assert whole and all(bytes(one.bytes).decode() == one.token for one in whole)


def test_a_document_of_completions(client: openai.OpenAI) -> None:
    """Questions stand behind it as they are; of two questions the first one has it read."""
    document, prompts = TEXT * 4, ["\nWho?", "\nWhere?"]
    reader = make_reader()
    asks = [Ask(document, p, template="{question}", options=options()) for p in prompts]
    wanted = [answer.text for answer in reader.answer(asks)]
    done = client.completions.create(
        model="tiny", prompt=prompts, extra_body={"document": document}, **DRAWN
    )
    assert [choice.text for choice in done.choices] == wanted
    count = len(reader.tokenizer(document)["input_ids"])
    details = done.usage.prompt_tokens_details
    assert (details.cached_tokens, details.cache_write_tokens) == (count, count)


def test_chat_without_a_template(client: openai.OpenAI) -> None:
    """System messages are the document; a lone question is written by the question template."""
    reader = make_reader()
    ask = Ask(f"{TEXT}\n\nBe brief.", QUESTION, options=options())
    messages = [
        {"role": "system", "content": TEXT},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    done = client.chat.completions.create(model="tiny", messages=messages, **DRAWN)  # type: ignore
    assert done.choices[0].message.content == reader.answer([ask])[0].text
    prompt = f"Question: {QUESTION}\nAnswer:"
    request = Request(prompt=prompt, options=options(), method="plain")
    (alone,) = Engine(reader.model, reader.tokenizer).run([request])
    assert chat(client, QUESTION).choices[0].message.content == alone.text


def test_chat_by_a_template() -> None:
    """The template writes all turns; the document ends before the last question, or a mark."""
    reader = make_reader()
    reader.tokenizer = type(reader.tokenizer)(
        tokenizer_object=reader.tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    )
    reader.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": QUESTION},
    ]
    documents = (f"<user>{TEXT.strip()}\n<assistant>Yes.\n<user>", f"<user>{TEXT}")
    questions = (f"{QUESTION}\n<assistant>", f"\n\n{QUESTION}\n<assistant>")
    asks = [
        Ask(document, question, template="{question}", options=options())
        for document, question in zip(documents, questions, strict=True)
    ]
    wanted = [answer.text for answer in reader.answer(asks)]
    with serving(reader) as server, server.client() as client:
        done = client.chat.completions.create(model="tiny", messages=turns, **DRAWN)  # type: ignore
        assert done.choices[0].message.content == wanted[0]
        marked = chat(client, about(TEXT), extra_body={"remamba_kept": True})
        kept = marked.remamba["answers"][0]["kept"]
        assert kept and all(TEXT[w["start"] : w["end"]] == w["text"] for w in kept)
        assert marked.choices[0].message.content == wanted[1]
        assert marked.remamba["answers"][0]["memory"] == "read"
        reader.tokenizer.chat_template = plain_chat_template(reader.tokenizer)
        with pytest.raises(openai.BadRequestError, match="template refuses"):
            client.chat.completions.create(model="tiny", messages=turns)  # type: ignore


def test_models_and_tokens(server: Running, client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "tiny" and {"tiny:plain", "tiny:chunks", "tiny:bm25"} <= {*names}
    assert not {"tiny:filter", "tiny:scale"} & {*names}  # they need a table
    for name in [*names, "tiny:bm25+remamba"]:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="no model 'tiny:nonsense'"):
        client.models.retrieve("tiny:nonsense")
    with server.http() as http:
        found = http.post("/tokenize", json={"prompt": TEXT}).json()
        assert found["tokens"] == tiny_tokenizer()(TEXT)["input_ids"]
        assert found["count"] == len(found["tokens"])
        again = http.post("/detokenize", json={"tokens": found["tokens"]}).json()
        assert again == {"prompt": TEXT}
        assert http.get("/tokenizer_info").json()["eos_token"] == "<|endoftext|>"
