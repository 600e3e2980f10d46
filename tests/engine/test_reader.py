"""The reader: text in, text out, equal to the engine, to generate and to the command line."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch

import remamba.engine.reader as module
from remamba import (
    Answer,
    Ask,
    CompressionConfig,
    Document,
    DocumentMemory,
    Engine,
    InputError,
    Reader,
    Request,
    SamplingOptions,
)
from remamba.engine import entrance
from remamba.engine.kept_words import kept_words
from remamba.engine.reader import resolve_method
from remamba.engine.request import fill_template
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.text import encode
from tests.tiny import (
    BEFORE,
    PAPER,
    QUESTION,
    TEXT,
    WHOLE,
    Run,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

ROOT = Path(__file__).parents[2]
TEMPLATE = "\nA question: {question}"
SHORT = SamplingOptions(max_new_tokens=6)
QUESTIONS = ["Who lives in Lisbon?", "Who plays?", "Is the café closed, and since when?"]
FORMS: dict[str, Any] = {"plain": "plain", "paper": PAPER, "whole": WHOLE, "before": BEFORE}


def make_reader(settings: CompressionConfig = WHOLE, backbone: str = "mamba2", **options: Any):
    """A reader of random weights whose own settings are given."""
    model = tiny_model(backbone, compression=settings.to_dict(), question_template=TEMPLATE)
    return Reader(model, tiny_tokenizer(), **options)


def told(answer: Answer, *, with_scores: bool = True) -> tuple[Any, ...]:
    """What two ways to one answer must agree in; scores differ in their last digits in a batch."""
    kept = answer.kept
    if kept is not None and not with_scores:
        kept = tuple((word.text, word.start, word.stop, word.positions) for word in kept)  # type: ignore[misc]
    facts = (answer.text, answer.token_ids, answer.finish_reason, answer.prompt_tokens)
    return (*facts, answer.method, kept)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_answers_equal_the_engine_and_generate(backbone: str, form: str) -> None:
    """Two documents and several questions of each in one call, the model's own way and plain."""
    reader = make_reader(backbone=backbone, slots=3)
    documents, method = [TEXT * 2, "The baker is away. " + TEXT], FORMS[form]
    pairs = [(d, q, m) for q in QUESTIONS for d in documents for m in (method, "plain")]
    answers = reader.answer([Ask(d, q, method=m, options=SHORT) for d, q, m in pairs])
    requests = [
        Request(
            document=d,
            question=fill_template(TEMPLATE, q),
            options=SHORT,
            compression=False if m == "plain" else m,
        )
        for d, q, m in pairs
    ]
    done = Engine(reader.model, reader.tokenizer, slots=3).run(requests)
    for (d, q, m), answer, completion in zip(pairs, answers, done, strict=True):
        ids = encode(reader.tokenizer, d).ids
        question = encode(reader.tokenizer, fill_template(TEMPLATE, q), begins=False).ids
        generated = reader.model.generate(
            torch.tensor([ids + question]),
            question_lengths=torch.tensor([len(question)]),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            compression=False if m == "plain" else m,
        )[0, len(ids) + len(question) :]
        assert answer.token_ids == completion.token_ids == generated.tolist()
        assert answer.text == completion.text
        assert answer.prompt_tokens == len(ids) + len(question)
        assert answer.new_tokens == 6 and answer.finish_reason == "length"
        assert answer.method == ("plain" if m == "plain" else "remamba")
        assert (answer.kept is None) == (m == "plain") == (completion.kept is None)
        assert answer.error is None
        stages = {"prefill", "decode"} | ({"stage1", "stage2"} if m != "plain" else set())
        assert set(answer.seconds) == stages


@pytest.mark.parametrize("form", FORMS)
def test_asking_a_document_equals_asking_its_text(form: str) -> None:
    """One question or many, the document read before or not."""
    reader = make_reader()
    document = reader.read(TEXT, method=FORMS[form])
    assert (document.memory is None) == (form == "paper") == (document.seconds is None)
    alone = [document.ask(q, options=SHORT) for q in QUESTIONS]
    of_text = [reader.answer([Ask(TEXT, q, method=FORMS[form], options=SHORT)]) for q in QUESTIONS]
    at_once = reader.answer([Ask(document, q, options=SHORT) for q in QUESTIONS])
    for one, (other,), batched in zip(alone, of_text, at_once, strict=True):
        assert told(one, with_scores=False) == told(other, with_scores=False)
        assert told(one, with_scores=False) == told(batched, with_scores=False)
    assert len({answer.text for answer in alone}) > 1


@pytest.mark.parametrize("form", ["plain", "whole", "before"])
def test_saved_equals_never_saved(form: str, tmp_path: Path) -> None:
    reader = make_reader()
    document = reader.read(TEXT, method=FORMS[form])
    document.save(tmp_path / "m")
    loaded = reader.load(tmp_path / "m")
    assert (loaded.text, loaded.ids, loaded.offsets) == (TEXT, document.ids, document.offsets)
    assert loaded.method == document.method and len(loaded) == len(document)
    for method in (None, "plain", PAPER):  # PAPER: both read the document again
        for question in QUESTIONS:
            options = {"method": method, "options": SHORT}
            assert told(loaded.ask(question, **options)) == told(document.ask(question, **options))
    loaded.save(tmp_path / "again")
    first, again = (DocumentMemory.load(tmp_path / name) for name in ("m", "again"))
    assert torch.equal(first.hidden, again.hidden) and first.fingerprint == again.fingerprint != ""
    document.save(tmp_path / "compact", torch.bfloat16)
    assert DocumentMemory.load(tmp_path / "compact").hidden.dtype == torch.bfloat16


def test_settings_that_no_memory_serves() -> None:
    """The document is read anew for each question; a memory of other settings is refused."""
    reader = make_reader(PAPER)
    document = reader.read(TEXT)
    assert document.memory is None and document.method == ReMamba(PAPER)
    with pytest.raises(InputError, match=r"a memory needs start=0.*placement='replace'"):
        document.save("nowhere")
    (expected,) = reader.answer([Ask(TEXT, QUESTION, options=SHORT)])
    assert told(document.ask(QUESTION, options=SHORT)) == told(expected)
    whole = reader.read(TEXT, method=WHOLE)
    assert told(whole.ask(QUESTION, method="remamba", options=SHORT)) == told(expected)
    plain = reader.read(TEXT, method="plain")
    with pytest.raises(InputError, match=r"method plain, which does not hold .*; read it again"):
        plain.ask(QUESTION, method=WHOLE)
    assert len(plain.ask(QUESTION, method=PAPER).kept or ()) > 0


def test_a_path_is_a_file_and_a_str_the_text_itself(tmp_path: Path) -> None:
    reader = make_reader()
    file = tmp_path / "doc.txt"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    document = reader.read(file)
    assert document.text == TEXT
    asks = [Ask(place, QUESTION, options=SHORT) for place in (file, TEXT, document)]
    first, *others = reader.answer(asks)
    assert all(told(first, with_scores=False) == told(o, with_scores=False) for o in others)
    name = reader.read(str(file))
    assert name.text == str(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing.txt cannot be read: No such file or directory; check the path"),
        (b" \n", "is empty; the document needs at least one word"),
        (b"%PDF\x00", "is a binary file"),
        (b"caf\xe9", "is not UTF-8 text"),
    ],
    ids=["missing", "empty", "binary", "latin"],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    reader, file = make_reader(), tmp_path / "missing.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        reader.read(file)
    bad, good = reader.answer([Ask(file, QUESTION), Ask(TEXT, QUESTION)], errors="return")
    assert isinstance(bad.error, InputError) and message in str(bad.error)
    assert good.error is None and good.text


@pytest.mark.parametrize("form", ["paper", "whole", "before"])
def test_answers_equal_the_command_line(form: str, tmp_path: Path, remamba: Run) -> None:
    place = save_tiny(tmp_path / "m", compression=FORMS[form], question_template=TEMPLATE)
    file = tmp_path / "doc.txt"
    file.write_text(TEXT * 3, encoding="utf-8")
    words = ["ask", "--model", place, "--document", file, "--json", "--compare", "--device", "cpu"]
    words += [word for question in QUESTIONS for word in ("--question", question)]
    found = remamba(*words, "--max-new-tokens", 9, "--temperature", 1, "--seed", 4)
    reader = Reader(place, device="cpu")
    document = reader.read(file)
    options = SamplingOptions(max_new_tokens=9, temperature=1, seed=4)
    asks = [Ask(document, question, options=options) for question in QUESTIONS]
    plain = [Ask(document, q, options=options, method="plain") for q in QUESTIONS]
    assert found["model"] == reader.name == str(place)
    assert found["document_tokens"] == len(document)
    lists = (found["answers"], reader.answer(asks), reader.answer(plain))
    for row, answer, beside in zip(*lists, strict=True):
        kept = [{**vars(w), "positions": list(w.positions)} for w in answer.kept or ()]
        assert kept == row["kept"] and kept
        assert [w.text for w in answer.kept or ()] == [
            document.text[w["start"] : w["stop"]] for w in row["kept"]
        ]
        for one, other in ((answer, row), (beside, row["plain"])):
            assert one.text.strip() == other["answer"]
            assert one.finish_reason == other["finish_reason"]
            assert (one.prompt_tokens, one.new_tokens) == (
                other["prompt_tokens"],
                other["new_tokens"],
            )
            assert set(one.seconds) == set(other["seconds"])


def test_a_document_is_read_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """More questions of one text than the engine looks at together, and two texts in turn."""
    reader = make_reader(slots=2)
    read, calls = entrance.read, []
    monkeypatch.setattr(entrance, "read", lambda *a: calls.append(1) or read(*a))
    options = SamplingOptions(max_new_tokens=1)
    many = [Ask(TEXT, f"Question {i}?", options=options) for i in range(90)]
    assert len(reader.answer(many)) == 90
    assert len(calls) == 1
    texts = [TEXT, TEXT * 2] * 3
    reader.answer([Ask(text, QUESTION, options=options) for text in texts])
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(TEXT, ""), "the question is empty"),
        (Ask(TEXT, " \n"), "the question is empty"),
        (Ask(TEXT), "a question goes with a document"),
        (Ask(" ", "Who?"), "the document is empty"),
        (Ask(question="Who?"), "takes a document or a prompt (given: none)"),
        (Ask(TEXT, "Who?", prompt="x"), "takes a document or a prompt (given: both)"),
        (Ask(prompt=""), "the prompt is empty"),
        (Ask(prompt="x", question="Who?"), "a question goes with a document"),
        (Ask(prompt="x", template="{question}"), "a template is for a question"),
        (Ask(TEXT, "Who?", template="Q:"), "lacks {question}"),
        (Ask(TEXT, "Who?", template=""), "the template is empty"),
        (Ask(TEXT, 3), "the question 3 is no text"),  # type: ignore[arg-type]
        (Ask(3, "Who?"), "the document 3 is no text"),  # type: ignore[arg-type]
        (Ask(TEXT, "Who?", method="bm52"), "'bm52' is no method; choose one of plain, remamba"),
        (Ask(TEXT, "Who?", method=False), "False is no method"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_asks(ask: Ask, message: str) -> None:
    """Raised before any work; or returned, while all others are answered."""
    reader = make_reader()
    good = Ask(TEXT, QUESTION, options=SHORT)
    with pytest.raises(InputError) as raised:
        reader.answer([good, ask])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    first, bad, last = reader.answer([good, ask, good], errors="return")
    alone = told(reader.answer([good])[0], with_scores=False)
    assert told(first, with_scores=False) == told(last, with_scores=False) == alone
    assert isinstance(bad.error, InputError) and str(bad.error) == str(raised.value)
    assert (bad.text, bad.kept, bad.finish_reason) == ("", None, "error")
    assert len(repr(bad)) < 100


def test_what_is_seen_to_be_wrong_is_told_before_the_work() -> None:
    reader, read = make_reader(), []
    reader.model.backbone.register_forward_hook(lambda *_: read.append(1))
    with pytest.raises(InputError, match="the question is empty"):
        reader.answer([Ask(f"{TEXT} {i}", QUESTION) for i in range(99)] + [Ask(TEXT, "")])
    with pytest.raises(InputError, match="errors='ignore' is unknown"):
        reader.answer([Ask(TEXT, QUESTION)], errors="ignore")  # type: ignore[arg-type]
    assert not read
    assert reader.answer([]) == []


@pytest.mark.parametrize("slots", [1, 4])
def test_an_error_of_the_machine_ends_one_answer(slots: int) -> None:
    """As when one document is too long for the memory: the others are answered."""
    reader = make_reader(PAPER, slots=slots)
    texts = [TEXT, "Too long. " * 40, TEXT * 2, "The baker is away."]
    asks = [Ask(text, QUESTION, options=SHORT) for text in texts]
    expected = reader.answer(asks)
    limit = len(encode(reader.tokenizer, texts[1]).ids)

    def refuse(_: Any, given: Any) -> None:
        if given[0].shape[1] >= limit:
            raise RuntimeError("out of memory")

    hook = reader.model.backbone.register_forward_pre_hook(refuse)
    found = reader.answer(asks, errors="return")
    assert isinstance(found[1].error, RuntimeError) and "out of memory" in str(found[1].error)
    for i in (0, 2, 3):
        assert told(found[i], with_scores=False) == told(expected[i], with_scores=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        reader.answer(asks)
    engine = reader._ready_engine()
    assert engine.is_idle  # nothing is left of what failed
    hook.remove()
    again = reader.answer(asks)
    assert [told(a, with_scores=False) for a in again] == [
        told(a, with_scores=False) for a in expected
    ]
    assert reader._ready_engine() is engine


def test_a_step_that_fails_is_made_good_for_each_alone() -> None:
    """What was too much for all at once is enough for one; with "raise" it ends them."""
    reader = make_reader(slots=4)
    asks = [Ask(TEXT * (1 + i), QUESTION, options=SHORT) for i in range(3)]
    expected = [told(answer, with_scores=False) for answer in reader.answer(asks)]

    def refuse(_: Any, given: Any) -> None:
        if given[0].shape[0] > 1 and given[0].shape[1] == 1:
            raise RuntimeError("out of memory")

    hook = reader.model.backbone.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        reader.answer(asks)
    found = reader.answer(asks, errors="return")
    hook.remove()
    assert [told(answer, with_scores=False) for answer in found] == expected


def test_answers_come_as_they_are_done() -> None:
    """The short ones first; leaving off frees the slots."""
    reader = make_reader(slots=2)
    counts = [9, 1, 2]
    asks = [Ask(TEXT, QUESTION, options=SamplingOptions(max_new_tokens=n)) for n in counts]
    numbers = [number for number, _ in reader.answer_each(asks)]
    assert sorted(numbers) == [0, 1, 2] and numbers[-1] == 0
    expected = [told(answer) for answer in reader.answer(asks)]
    each = reader.answer_each(asks)
    next(each)
    engine = reader._ready_engine()
    assert engine._slots.owners
    each.close()  # type: ignore[attr-defined]
    assert engine.is_idle
    assert [told(answer) for answer in reader.answer(asks)] == expected


def test_stream() -> None:
    reader = make_reader(PAPER)
    options = SamplingOptions(max_new_tokens=30, temperature=1, seed=5)
    ask = Ask(TEXT, QUESTION, options=options)
    (expected,) = reader.answer([ask])
    stream = reader.stream(ask)
    assert stream.answer is None
    pieces = [next(stream)]
    (between,) = reader.answer([ask])  # others are answered while it goes on
    pieces += stream
    assert len(pieces) > 1 and "".join(pieces) == expected.text
    assert stream.answer is not None
    assert told(stream.answer) == told(expected)
    assert told(between, with_scores=False) == told(expected, with_scores=False)
    left = reader.stream(ask)
    next(left)
    left.close()
    assert left.answer is not None and left.answer.finish_reason == "cancelled"
    with pytest.raises(InputError, match="the question is empty"):
        reader.stream(Ask(TEXT, ""))


def test_a_prompt_in_one_part() -> None:
    reader = make_reader(PAPER)
    own, plain = reader.answer(
        [Ask(prompt=TEXT, options=SHORT, method=method) for method in (None, "plain")]
    )
    expected = Engine(reader.model, reader.tokenizer).run([Request(prompt=TEXT, options=SHORT)])[0]
    assert (own.text, own.token_ids) == (expected.text, expected.token_ids)
    offsets = encode(reader.tokenizer, TEXT).offsets
    assert own.kept == tuple(kept_words(TEXT, offsets, expected.kept or ())) and own.kept
    assert own.kept_tokens == expected.kept
    assert plain.kept is None and plain.kept_tokens is None


def test_options_and_template() -> None:
    reader = make_reader()
    document = reader.read(TEXT)
    own = document.ask(QUESTION, options=SHORT)
    assert told(document.ask(QUESTION, options=SHORT, template=TEMPLATE)) == told(own)
    other = document.ask(QUESTION, options=SHORT, template=" {question} Answer: ")
    assert other.prompt_tokens != own.prompt_tokens
    question = encode(reader.tokenizer, fill_template(TEMPLATE, QUESTION), begins=False).ids
    assert own.prompt_tokens == len(document) + len(question)


def test_progress() -> None:
    reader, heard = make_reader(piece_length=50), []
    document = reader.read(TEXT * 3, progress=lambda done, total: heard.append((done, total)))
    done = [read for read, _ in heard]
    assert done == sorted(done) and len(done) > 2 and done[-1] == len(document)
    assert {total for _, total in heard} == {len(document)}
    whole = make_reader().read(TEXT * 3)
    assert document.ask(QUESTION, options=SHORT).text == whole.ask(QUESTION, options=SHORT).text


def test_each_fits_on_a_line() -> None:
    reader = make_reader()
    document = reader.read(TEXT * 5)
    shown = [
        *(repr(reader), repr(document), repr(reader.read(TEXT, method=PAPER))),
        *(repr(document.ask(QUESTION)), repr(document.ask(QUESTION, method="plain"))),
    ]
    names = ["Reader", "Document", "Document", "Answer", "Answer"]
    for line, name in zip(shown, names, strict=True):
        assert line.startswith(f"{name}(") and "\n" not in line and len(line) <= 120, line
    assert len(document) == len(document.ids) == len(encode(reader.tokenizer, TEXT * 5).ids)
    assert f"{len(document):,} tokens" in shown[1] and "read by remamba" in shown[1]


def test_methods() -> None:
    own, plain = make_reader(PAPER).model, tiny_model("mamba2", method="plain")
    assert resolve_method(own, None) == resolve_method(own, "remamba") == ReMamba(PAPER)
    assert resolve_method(own, WHOLE) == ReMamba(WHOLE)
    assert resolve_method(own, "plain") == resolve_method(plain, None) == Plain()
    with pytest.raises(InputError, match="this model was not trained for it"):
        resolve_method(plain, "remamba")


def test_readers_that_cannot_be_made(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(InputError, match="give tokenizer="):
        Reader(model)
    with pytest.raises(InputError, match=r"model\.to"):
        Reader(model, tokenizer, device="cpu")
    with pytest.raises(InputError, match="piece_length = 0 must be at least 1"):
        Reader(model, tokenizer, piece_length=0)
    with pytest.raises(InputError, match="slots = 0 must be at least 1"):
        Reader(model, tokenizer, slots=0)
    with pytest.raises(InputError, match="is no directory"):
        Reader(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^device abacus is not on this machine"):
        Reader(device="abacus")


def test_documents_of_another_model(tmp_path: Path) -> None:
    """Refused, as its tokens mean something else; two readers of one model share documents."""
    reader, other = make_reader(), make_reader(BEFORE, backbone="mamba")
    document = other.read(TEXT)
    with pytest.raises(InputError, match="was read by another model"):
        reader.answer([Ask(document, QUESTION)])
    document.save(tmp_path / "m")
    with pytest.raises(InputError, match="another model"):
        reader.load(tmp_path / "m")
    second = Reader(other.model, other.tokenizer, slots=1)
    (answer,) = second.answer([Ask(document, QUESTION, options=SHORT)])
    assert told(answer) == told(document.ask(QUESTION, options=SHORT))


def test_memories_without_tokens_and_of_several_documents(tmp_path: Path) -> None:
    reader = make_reader()
    ids = encode(reader.tokenizer, TEXT).ids
    memory = reader.model.read(torch.tensor([ids, ids]))
    memory.save(tmp_path / "two")
    with pytest.raises(InputError, match="two holds 2 documents"):
        reader.load(tmp_path / "two")
    one = memory.select(torch.tensor([0]))
    one.input_ids = None
    one.save(tmp_path / "bare")
    document = reader.load(tmp_path / "bare")
    assert isinstance(document, Document) and document
    assert (document.text, document.ids, len(document)) == ("", [], len(ids))
    answer, expected = (d.ask(QUESTION, options=SHORT) for d in (document, reader.read(TEXT)))
    assert answer.token_ids == expected.token_ids
    assert answer.kept == () and answer.kept_tokens is not None
    assert [at for at, _ in answer.kept_tokens] == [at for at, _ in expected.kept_tokens or ()]


def test_states_that_are_not_finite() -> None:
    reader = make_reader()
    with torch.no_grad():
        reader.model.backbone.norm_f.weight[3] = torch.nan
    with pytest.raises(InputError, match="the document's states are not finite"):
        reader.read(TEXT)
    answers = reader.answer([Ask(TEXT, QUESTION), Ask(prompt=TEXT)], errors="return")
    assert all("not finite" in str(answer.error) for answer in answers)
    with pytest.raises(InputError, match="not finite"):
        reader.answer([Ask(TEXT, QUESTION)])


def test_the_docstrings_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedded model, from the checkout's root."""
    monkeypatch.chdir(ROOT)
    found = doctest.testmod(module)
    assert found.attempted >= 8 and not found.failed
