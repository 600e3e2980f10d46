"""Rows, tokens and batches: what training reads is what the files say."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remamba.errors import InputError
from remamba.model.rows import IGNORE
from remamba.train.batches import StepBatches, make_loader
from remamba.train.data import DOCUMENT, PROMPT, TEXT, TokenData, read_data
from tests.train.toy import make_tokenizer, write_documents, write_rows

TOKENIZER = make_tokenizer()


def read(path: str, **options: Any) -> TokenData:
    options = {"vocab_size": len(TOKENIZER), "max_length": 100, **options}
    return read_data([path], TOKENIZER, **options)


def batches(data: TokenData, **options: Any) -> StepBatches:
    options = {"steps": 20, "batch_size": 4, "questions": 2, "seed": 0, **options}
    return StepBatches(data, **options)


def test_each_kind_of_row_is_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": " key1 is", "response": " val1"},
        {"document": " key2 val2.", "question": " key2", "response": " val2"},
        {"document": " key3 val3.", "questions": [{"question": " key3", "response": " val3"}] * 2},
        {"text": " the key4", "title": "ignored"},
    ]
    data = read(write_rows(tmp_path / "rows.jsonl", rows))
    assert data.kinds.tolist() == [PROMPT, DOCUMENT, DOCUMENT, TEXT]
    assert np.diff(data.first_question).tolist() == [1, 1, 2, 0]
    assert data.questions.flat.dtype == np.uint16
    assert TOKENIZER.decode(data.contexts.row(2)) == " key3 val3."
    assert TOKENIZER.decode(data.questions.row(0)) == " key1 is"
    assert TOKENIZER.decode(data.responses.row(3)) == " val3<|end|>"
    assert TOKENIZER.decode(data.contexts.row(3)) == " the key4<|end|>"
    assert data.where(3).endswith("rows.jsonl:4")


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_read_and_cut_ones_refused(tmp_path: Path, suffix: str, pack: Any) -> None:
    packed = pack(b"".join(b'{"text": " key%d is the key"}\n' % i for i in range(200)))
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(packed)
    data = read(str(path))
    assert data.num_items == 200
    assert len(data.hashes[str(path)]) == 64
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="truncated"):
        read(str(path))


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "no JSON object"),
        ("[1]", "a list in place of a row"),
        ('{"question": "a", "answer": "b"}', "the row has 'question', 'answer'"),
        ('{"prompt": "a"}', "'response' is missing"),
        ('{"prompt": "a", "text": "b"}', "the row has"),
        ('{"prompt": 3, "response": "b"}', "'prompt' is a number"),
        ('{"prompt": "a", "response": ""}', "'response' is empty"),
        ('{"document": "a", "questions": []}', "at least one question"),
        ('{"document": "a", "questions": ["b"]}', "objects with"),
        (
            '{"document": "a", "questions": [{"question": "b"}]}',
            "question 1: 'response' is missing",
        ),
        ('{"text": "\\ud800"}', "half a character"),
        ('{"document": "a", "question": "b", "response": "c", "evidence": "d"}', "no part of"),
        ('{"document": "a", "question": "b", "response": "c", "evidence": [0, 9]}', "within its 1"),
        ('{"document": "a", "question": "b", "response": "c", "evidence": []}', "a list of these"),
        ('{"document": "a", "question": "b", "response": "c", "evidence": ["a", "d"]}', "no part"),
        ('{"document": "a", "question": "b", "response": "c", "evidence": [[0, 1], 2]}', "a list"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": " the key"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=said) as error:
        read(str(path))
    assert str(error.value).startswith(f"{path}:3")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:1: not UTF-8"):
        read(str(path))


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        read(str(tmp_path / "nothing.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no row"):
        read(str(tmp_path / "empty.jsonl"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "d.jsonl", count=2)
    with pytest.raises(InputError, match="do not belong together"):
        read(path, vocab_size=10)


def test_long_rows_are_refused_cut_or_skipped(tmp_path: Path) -> None:
    rows = [
        {"document": " w1" * 60, "question": " key1", "response": " val1"},
        {"document": " w1", "question": " key1", "response": " val1"},
        {"prompt": " w1" * 30 + " w2" * 30, "response": " val1"},
    ]
    path = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(InputError, match=r"d.jsonl:1: the document has 120 tokens"):
        read(path)
    cut = read(path, long_rows="cut")
    assert cut.num_items == 3
    assert cut.lengths().tolist() == [100, 2, 100]
    assert "2 longer rows cut" in cut.summary()
    assert TOKENIZER.decode(cut.questions.row(2)).endswith("w2")
    skipped = read(path, long_rows="skip")
    assert skipped.num_items == 1
    with pytest.raises(InputError, match=r"no row .* is left"):
        read(write_rows(tmp_path / "e.jsonl", rows[:1]), long_rows="skip")


def test_texts_are_cut_into_pieces(tmp_path: Path) -> None:
    data = read(write_rows(tmp_path / "t.jsonl", [{"text": " w1" * 120}]))
    assert data.lengths().tolist() == [100, 100, 41]
    batch = batches(data, batch_size=3)[0]
    real = batch["attention_mask"].bool()
    assert (batch["labels"][:, 0] == IGNORE).all()
    assert (batch["labels"][:, 1:] == batch["input_ids"][:, 1:])[real[:, 1:]].all()
    assert (batch["labels"][~real] == IGNORE).all()


def test_a_batch_holds_documents_and_their_questions(tmp_path: Path) -> None:
    data = read(write_documents(tmp_path / "d.jsonl", count=9), score_target="answer")
    steps = batches(data, score_target="answer")
    for step in range(len(steps)):
        batch = steps[step]
        assert batch["input_ids"].shape[0] == 8
        tokens = batch["attention_mask"].sum() + batch["document_attention_mask"].sum()
        assert batch["num_tokens"] == tokens
        for row in range(8):
            item = int(steps.items(step)[row // 2])
            document = batch["document_ids"][row // 2]
            length = int(batch["document_attention_mask"][row // 2].sum())
            assert (document[:length].numpy() == data.contexts.row(item)).all()
            answer = TOKENIZER.decode(batch["labels"][row][batch["labels"][row] != IGNORE])
            prompt = TOKENIZER.decode(batch["input_ids"][row][: batch["prompt_lengths"][row]])
            value = answer.removesuffix("<|end|>")
            assert f"{prompt}{value}." in TOKENIZER.decode(document)
            (places,) = np.nonzero(batch["score_targets"][row].numpy())
            assert len(places)
            for place in places:
                assert TOKENIZER.decode(document[: place + 1]).endswith(value)


def test_separate_rows_are_the_same_tokens(tmp_path: Path) -> None:
    data = read(write_documents(tmp_path / "d.jsonl"), score_target="answer")
    shared = batches(data, score_target="answer")[3]
    apart = batches(data, score_target="answer", shared=False)[3]
    assert "document_ids" not in apart
    for row in range(8):
        document = shared["document_ids"][row // 2]
        length = int(shared["document_attention_mask"][row // 2].sum())
        whole = torch.cat([document[:length], shared["input_ids"][row]])
        width = length + int(shared["attention_mask"][row].sum())
        assert apart["input_ids"][row][:width].equal(whole[:width])
        assert apart["question_lengths"][row] == shared["prompt_lengths"][row]
        assert apart["prompt_lengths"][row] == length + shared["prompt_lengths"][row]
        targets = apart["score_targets"][row]
        assert targets[:length].equal(shared["score_targets"][row][:length])
        assert not targets[length:].any()


def test_every_item_comes_once_an_epoch_in_an_order_of_the_seed(tmp_path: Path) -> None:
    data = read(write_documents(tmp_path / "d.jsonl", count=8))
    steps = batches(data)
    assert steps.batches_per_epoch == 2
    epochs = [np.concatenate([steps.items(2 * e), steps.items(2 * e + 1)]) for e in range(4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = batches(data)
    assert (again.items(7) == steps.items(7)).all()
    other = batches(data, seed=1)
    assert any((other.items(i) != steps.items(i)).any() for i in range(8))


def test_batches_are_of_one_kind_and_of_similar_lengths(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": " w1" * (1 + i % 20)} for i in range(40)]
    rows += [{"prompt": " w1", "response": " w2"}] * 3
    data = read(write_rows(tmp_path / "m.jsonl", rows))
    steps = batches(data)
    assert steps.batches_per_epoch == 11
    spread = []
    for step in range(11):
        items = steps.items(step)
        assert len(set(data.kinds[items])) == 1
        spread.append(np.ptp(data.lengths()[items]))
    assert max(spread) <= 4


def test_processes_and_passes_share_a_batch(tmp_path: Path) -> None:
    data = read(write_documents(tmp_path / "d.jsonl"))
    whole = batches(data, batch_size=8)[5]["document_ids"]
    parts = [
        batches(data, batch_size=8, accumulate=2, processes=2, process=process)[2 * 5 + pass_]
        for pass_ in range(2)
        for process in range(2)
    ]
    assert torch.cat([part["document_ids"] for part in parts]).equal(whole)
    with pytest.raises(InputError, match="--batch-size = 8 does not divide into 3"):
        batches(data, batch_size=8, accumulate=3)


def test_workers_and_skipped_steps_change_nothing(tmp_path: Path) -> None:
    from accelerate import skip_first_batches

    data = read(write_documents(tmp_path / "d.jsonl"))
    steps = batches(data, steps=6)
    loader = make_loader(steps, workers=2, pin_memory=False)
    for i, batch in enumerate(loader):
        assert batch["input_ids"].equal(steps[i]["input_ids"])
    rest = list(skip_first_batches(loader, 4))
    assert len(rest) == 2
    assert rest[0]["document_ids"].equal(steps[4]["document_ids"])


def targets_of(tmp_path: Path, row: dict[str, Any], target: str) -> list[str]:
    """The document up to each target, for the row's only question."""
    data = read(write_rows(tmp_path / "r.jsonl", [row]), score_target=target)
    batch = batches(data, batch_size=1, questions=1, score_target=target)[0]
    ids = batch["document_ids"][0]
    places = batch["score_targets"][0].nonzero()[:, 0].tolist()
    return [TOKENIZER.decode(ids[: place + 1]) for place in places]


def test_answers_are_found_in_every_form_but_not_inside_words(tmp_path: Path) -> None:
    document = "paris is the Paris. Parish (Paris) w1 Parisw2 val1 val11 key3 val1"
    row = {"document": document, "question": " Where is it", "response": " Paris."}
    found = targets_of(tmp_path, row, "answer")
    assert found == ["paris", "paris is the Paris", "paris is the Paris. Parish (Paris"]
    row["response"] = "val1"
    assert targets_of(tmp_path, row, "answer") == [
        document[: document.index("val11") - 1],
        document,
    ]
    row["answer"] = ["Parish", "it"]
    assert targets_of(tmp_path, row, "answer") == ["paris is the Paris. Parish"]
    row["answer"] = "nowhere"
    assert targets_of(tmp_path, row, "answer") == []


def test_evidence_marks_the_answer_inside_it_and_its_end(tmp_path: Path) -> None:
    document = " key1 val1. key2 val1. key2 val1. key3 val3."
    row = {
        "document": document,
        "question": " key2",
        "response": " val1",
        "evidence": " key2 val1. key2 val1.",
    }
    first, second = " key1 val1. key2 val1", " key1 val1. key2 val1. key2 val1"
    assert targets_of(tmp_path, row, "evidence") == [first, second, second + "."]
    start = document.index(" key2")
    row["evidence"] = [start, start + len(" key2 val1.")]
    assert targets_of(tmp_path, row, "evidence") == [first, first + "."]
    row["evidence"][1] -= len(".")
    assert targets_of(tmp_path, row, "evidence") == [first]
    row["evidence"][1] += len(".")
    row["answer"] = "val9"
    assert targets_of(tmp_path, row, "evidence") == [" key1 val1. key2 val1."]


SPANS = {
    "document": " key1 val1. w1 key2 w2 w3. key3 val1.",
    "questions": [
        {"question": " key1", "response": " val1", "evidence": [" w1 key2 w2 w3.", " key3 val1"]},
        {"question": " key2", "response": " val1", "evidence": " key1 val1."},
        {"question": " key3", "response": " val1"},
    ],
}


def test_each_span_of_evidence_has_its_own_targets(tmp_path: Path) -> None:
    data = read(write_rows(tmp_path / "r.jsonl", [SPANS]), score_target="evidence")
    options = {"batch_size": 1, "questions": 3, "score_target": "evidence"}
    batch = batches(data, **options)[0]
    ids = batch["document_ids"][0]
    prompts = zip(batch["input_ids"], batch["prompt_lengths"], strict=True)
    asked = [TOKENIZER.decode(row[:length]) for row, length in prompts]
    found: dict[str, list[list[str]]] = {
        question: [
            [TOKENIZER.decode(ids[: place + 1]) for place in targets[:, span].nonzero()[:, 0]]
            for span in range(targets.shape[1])
        ]
        for question, targets in zip(asked, batch["score_targets"], strict=True)
    }
    assert found == {
        # the answer is in the second span, at its end; of the first, the last token
        " key1": [[" key1 val1. w1 key2 w2 w3."], [SPANS["document"].removesuffix(".")]],
        " key2": [[" key1 val1", " key1 val1."], []],
        " key3": [[], []],
    }
    apart = batches(data, **options, shared=False)[0]["score_targets"]
    width = batch["score_targets"].shape[1]
    assert apart[:, :width].equal(batch["score_targets"]) and not apart[:, width:].any()
    answers = read(write_rows(tmp_path / "r.jsonl", [SPANS]), score_target="answer")
    assert batches(answers, **{**options, "score_target": "answer"})[0]["score_targets"].dim() == 2


def test_a_list_of_one_span_is_the_span(tmp_path: Path) -> None:
    row = {"document": " key1 val1. key2 val2.", "question": " key2", "response": " val2"}
    made = []
    for evidence in (" key2 val2.", [11, 22], [" key2 val2."], [[11, 22]]):
        path = write_rows(tmp_path / "r.jsonl", [{**row, "evidence": evidence}])
        steps = batches(read(path, score_target="evidence"), batch_size=1, score_target="evidence")
        made.append(steps[0]["score_targets"])
    assert made[0].dim() == 2 and made[0].any() and all(other.equal(made[0]) for other in made)


def test_evidence_that_is_cut_away_leaves_the_rest(tmp_path: Path) -> None:
    row = {**SPANS, "document": SPANS["document"] + " w1" * 100}
    row["questions"] = [
        {**SPANS["questions"][0], "evidence": [" key1 val1.", " w1 w1 w1", [0, 337]]}
    ]
    path = write_rows(tmp_path / "r.jsonl", [row])
    data = read(path, score_target="evidence", long_rows="cut", max_length=30)
    assert len(data.evidence.row(0)) == 2


def test_what_only_scorers_read_is_passed_over(tmp_path: Path) -> None:
    row = {"document": " key1 val1.", "question": " key1", "response": " val1"}
    more = {"id": "facts-test-0-1", "task": "facts", "metric": "exact", "new_tokens": 8}
    plain = read(write_rows(tmp_path / "r.jsonl", [row]), score_target="answer")
    full = {**row, **more, "tokens": 5, "answers": ["val9"]}
    data = read(write_rows(tmp_path / "r.jsonl", [full]), score_target="answer")
    assert plain.finder is not None and data.finder is not None
    for name in ("contexts", "questions", "responses"):
        assert (getattr(data, name).flat == getattr(plain, name).flat).all()
    assert (data.finder.patterns.flat == plain.finder.patterns.flat).all()


def test_targets_agree_with_a_plain_search(tmp_path: Path) -> None:
    data = read(write_documents(tmp_path / "d.jsonl", facts=8), score_target="answer")
    finder = data.finder
    assert finder is not None
    for item in range(data.num_items):
        tokens = data.contexts.row(item)
        asked = np.arange(data.first_question[item], data.first_question[item + 1])
        found = finder.mask(tokens, data.answers[asked])
        for row, question in enumerate(asked):
            value = TOKENIZER.decode(data.responses.row(question)[:-1])
            for place in range(len(tokens)):
                before, after = TOKENIZER.decode(tokens[: place + 1]), ""
                if place + 1 < len(tokens):
                    after = TOKENIZER.decode(tokens[place + 1 : place + 2])
                whole = before.endswith(value) and not after[:1].isalnum()
                assert found[row, place] == whole


def test_questions_are_sampled_or_repeated(tmp_path: Path) -> None:
    asked = [{"question": f" key{i}", "response": f" val{i}"} for i in range(6)]
    rows = [{"document": " w1", "questions": asked}, {"document": " w2", "questions": asked[:1]}]
    steps = batches(read(write_rows(tmp_path / "d.jsonl", rows)), batch_size=2, questions=4)
    seen = set()
    for step in range(20):
        first, second = steps.sample_questions(step)[np.argsort(steps.items(step))]
        assert len(set(first)) == 4
        assert set(second) == {6}
        seen.update(first.tolist())
    assert seen == set(range(6))


def test_json_lines_may_lack_a_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "w1 w2"}) + "\n" + json.dumps({"text": "w3 w4"}))
    assert read(str(path)).num_items == 2


def test_the_first_bad_row_is_told_and_long_ones_are_skipped_when_asked(tmp_path: Path) -> None:
    lines = [
        b'{"prompt": " key1", "response": " val1"}',
        b'{"prompt": " key2", "response": "' + b" val2" * 120 + b'"}',
        b'{"document": "' + b" w1" * 120 + b'", "question": " key3", "response": " val3"}',
        b'{"prompt": " key4", "response": " val4"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    data = read(str(path), long_rows="skip")
    assert [data.where(item) for item in range(data.num_items)] == [f"{path}:1", f"{path}:4"]
    assert data.counts == {"cut": 0, "skipped": 2, "chats": 0}
    assert "; 2 longer rows skipped" in data.summary()
    for bad, said in (
        (b"{broken", "no JSON object"),
        (b'{"prompt": "", "response": " val1"}', "'prompt' is empty"),
        (b'{"prompt": " key1"}', "'response'"),
        (b'{"text": "\xff"}', "UTF-8"),
    ):
        path.write_bytes(b"\n".join([lines[0], bad, lines[0]]))
        with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{said}"):
            read(str(path), long_rows="skip")


def test_arrays_and_tables_are_read_as_lines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows: list[dict[str, Any]] = [
        {"prompt": f" key{i} {'[w1]' * i}", "response": f" val{i}"} for i in range(9)
    ]
    rows.append({"text": ' w1 "w2" \\ é'})
    array, table = tmp_path / "rows.json", tmp_path / "rows.parquet"
    array.write_text(" \n" + json.dumps(rows, indent=1), encoding="utf-8")
    columns = pyarrow.schema([(name, "string") for name in ("prompt", "response", "text")])
    parquet.write_table(pyarrow.Table.from_pylist(rows, columns), table)
    monkeypatch.setattr("remamba.train.records.BLOCK", 16)  # elements reach over many blocks
    expected = read(write_rows(tmp_path / "rows.jsonl", rows))
    for path in (array, table):
        data = read(str(path))
        assert (data.questions.flat == expected.questions.flat).all()
        assert (data.contexts.flat == expected.contexts.flat).all()
        assert data.where(9) == f"{path}:10"
        assert len(data.hashes[str(path)]) == 64
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"rows\.parquet:1: not readable as Parquet"):
        read(str(table))
    array.write_text(json.dumps([{"text": " w1"}, 3, {"text": " w2"}]))
    with pytest.raises(InputError, match=r"rows\.json:2: a number in place of a row"):
        read(str(array))
    array.write_text('[{"text": " w1"}, {"text": " w')
    with pytest.raises(InputError, match=r"rows\.json:2: no JSON"):
        read(str(array))
    write_rows(array, rows)  # lines with the ending of an array
    assert read(str(array)).num_items == 10


def test_a_folder_stands_for_the_shards_of_its_manifest(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.jsonl", [{"text": " w1"}])
    write_rows(tmp_path / "a.jsonl", [{"text": " w2"}])
    with pytest.raises(InputError, match=r"a folder without the manifest\.json"):
        read(str(tmp_path))
    manifest = {"shards": [{"name": "b.jsonl"}, {"name": "a.jsonl"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read(str(tmp_path)).where(1) == f"{tmp_path / 'a.jsonl'}:1"


def messages(*contents: str, system: str | None = None) -> dict[str, Any]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *said]}


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_messages_are_a_prompt_and_a_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [messages(" key1", " val1"), messages(" key2", " val2", system="w1 w2")]
    path = write_rows(tmp_path / "chat.jsonl", rows)
    data = read(path)
    assert data.kinds.tolist() == [PROMPT, PROMPT]
    assert TOKENIZER.decode(data.questions.row(0)) == " key1"
    assert TOKENIZER.decode(data.questions.row(1)) == "w1 w2\n\n key2"
    assert TOKENIZER.decode(data.responses.row(1)) == " val2<|end|>"

    long = messages(" key1", " val1", " key2", " val2")
    several = write_rows(tmp_path / "several.jsonl", [long])
    with pytest.raises(InputError, match=r"several\.jsonl:1: 4 messages .* need a chat template"):
        read(several)
    monkeypatch.setattr(TOKENIZER, "chat_template", TEMPLATE)
    data = read(several)
    assert TOKENIZER.decode(data.questions.row(0)) == (
        "<user> key1<assistant> val1<|end|>\n<user> key2<assistant>"
    )
    assert TOKENIZER.decode(data.responses.row(0)) == " val2<|end|>"


@pytest.mark.parametrize(
    "row, said",
    [
        ({"messages": []}, "a list of a question and its answer"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "must be the assistant's"),
        (messages("a", ""), "message 2 has no text"),
        ({"messages": [{"role": "human", "content": "a"}] * 2}, "message 1 needs a 'role'"),
    ],
)
def test_messages_that_cannot_be_learnt_are_refused(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=f"chat.jsonl:1: .*{said}"):
        read(write_rows(tmp_path / "chat.jsonl", [row]))
