"""Documents read in chunks or by their best passages, in text: `Reader` chooses by words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from remamba import Ask, InputError, Reader, SamplingOptions
from remamba.methods.bm25 import Bm25, best_of
from remamba.methods.chunks import Chunks, entropy
from remamba.methods.passages import split_chunks
from remamba.methods.remamba import ReMamba
from remamba.text import encode
from tests.tiny import END, WHOLE, tiny_model, tiny_tokenizer

DOCUMENT = "\n\n".join(
    (
        "Tom Hill lives in Paris. The café is closed, and Tom is too.",
        "Helen Archer plays the dulcimer. The mayor of Zürich is closed.",
        "Naïve façades, 東京 and 🙂 too. Nobody lives in Lisbon at all.",
        "Archer lives in Paris too. The dulcimer is closed; the café is not.",
    )
)
QUESTION = "Who plays the dulcimer?"
SHORT = SamplingOptions(max_new_tokens=6)


def make_reader(**changes: Any) -> Reader:
    return Reader(tiny_model(compression=WHOLE, **changes), tiny_tokenizer())


def alone(reader: Reader, text: str, question: str, method: Any = "plain") -> list[int]:
    """The new tokens behind a text and a question."""
    return reader.answer([Ask(text, question, method=method, options=SHORT)])[0].token_ids


def test_the_surest_chunk_answers() -> None:
    reader = make_reader()
    document, offsets = encode(reader.tokenizer, DOCUMENT)
    ranges = split_chunks(DOCUMENT, offsets, 40)
    assert len(ranges) > 3
    question = reader.model.config.question_template.replace("{question}", QUESTION)
    asked = encode(reader.tokenizer, question, begins=False).ids
    unsure = []
    for first, end in ranges:
        ids = torch.tensor([document[first:end] + asked])
        logits = reader.model(ids, method="plain", logits_to_keep=1).logits[:, -1]
        unsure.append(entropy(logits).item())
    first, end = ranges[unsure.index(min(unsure))]
    for method in (Chunks(40), Chunks(40, candidates=99)):
        (answer,) = reader.answer([Ask(DOCUMENT, QUESTION, method=method, options=SHORT)])
        assert answer.passages is not None and answer.method == "chunks"
        (passage,) = answer.passages
        assert (passage.start, passage.stop) == (offsets[first][0], offsets[end - 1][1])
        assert passage.text == DOCUMENT[passage.start : passage.stop]
        ids = torch.tensor([document[first:end] + asked])
        out = reader.model.generate(
            ids, method="plain", max_new_tokens=6, do_sample=False,
            pad_token_id=0, eos_token_id=reader.tokenizer.eos_token_id,
        )  # fmt: skip
        assert answer.token_ids == out[0, ids.shape[1] :].tolist()


def test_bm25_ranks_the_chunks_by_the_question() -> None:
    """The second paragraph has all of the question's rare words."""
    reader = make_reader()
    ask = Ask(DOCUMENT, QUESTION, method=Chunks(40, candidates=1), options=SHORT)
    (answer,) = reader.answer([ask])
    assert answer.passages is not None
    assert answer.passages[0].text.strip().startswith("Helen Archer plays the dulcimer")
    assert best_of(["a b", "b c", "c c"], "c", 1) == [2]
    assert best_of(["a b", "b c", "x"], "b", 2) == [0, 1]
    assert best_of(["x", "y", "z"], "b", 2) == [0, 1]  # of equals the earlier


def test_a_document_read_once_answers_as_one_read_anew(tmp_path: Path) -> None:
    """Each question alone and all together, from the text, from one reading, and from a file."""
    reader = make_reader()
    questions = [QUESTION, "Who lives in Lisbon?", "Where is the café?"]
    for method in (Chunks(40), Chunks(40, candidates=2)):
        read = reader.read(DOCUMENT, method=method)
        assert read.memory is not None and len(read) == len(encode(reader.tokenizer, DOCUMENT).ids)
        read.save(tmp_path / "memory")
        loaded = reader.load(tmp_path / "memory")
        assert loaded.method == method and loaded.text == DOCUMENT and loaded.ids == read.ids
        (tmp_path / "memory").unlink()
        asks = [Ask(d, q, options=SHORT) for d in (read, loaded) for q in questions]
        asks += [Ask(DOCUMENT, q, method=method, options=SHORT) for q in questions]
        together = reader.answer(asks)
        for i, question in enumerate(questions):
            (one,) = reader.answer([Ask(DOCUMENT, question, method=method, options=SHORT)])
            for answer in together[i::3]:
                assert (answer.token_ids, answer.passages) == (one.token_ids, one.passages)


def test_candidates_alone_are_read() -> None:
    reader = make_reader()
    rows: list[int] = []
    whole = reader.read_rows

    def counted(given: Any, method: Any) -> Any:
        rows.append(len(given))
        return whole(given, method)

    reader.read_rows = counted  # type: ignore[method-assign]
    ask = Ask(DOCUMENT, QUESTION, method=Chunks(40, candidates=2), options=SHORT)
    reader.answer([ask, ask])
    assert rows == [2]  # the second ask finds them read


def test_other_methods_on_a_document_of_chunks() -> None:
    """It is read anew for them, and for chunks of another size; a memory's own text allows both."""
    reader = make_reader()
    read = reader.read(DOCUMENT, method=Chunks(40))
    for method in ("plain", "remamba", Chunks(60), Bm25(50), "twice"):
        expected = alone(reader, DOCUMENT, QUESTION, method)
        assert read.ask(QUESTION, method=method, options=SHORT).token_ids == expected
    whole = reader.read(DOCUMENT, method="plain")
    expected = alone(reader, DOCUMENT, QUESTION, Chunks(40))
    assert whole.ask(QUESTION, method=Chunks(40), options=SHORT).token_ids == expected


def test_bm25_reads_the_excerpt_as_a_document_of_its_own() -> None:
    """The passages are whole paragraphs here, so that their tokens are those of the text alone."""
    reader = make_reader()
    (answer,) = reader.answer([Ask(DOCUMENT, QUESTION, method=Bm25(50), options=SHORT)])
    assert answer.passages is not None
    texts = [passage.text for passage in answer.passages]
    assert any("Helen Archer plays" in text for text in texts)
    assert sum(len(encode(reader.tokenizer, text).ids) for text in texts) <= 50
    left = Bm25(50).excerpt(DOCUMENT, encode(reader.tokenizer, DOCUMENT).offsets, QUESTION)
    assert alone(reader, left.text, QUESTION) == answer.token_ids
    method = Bm25(50, reader=ReMamba(WHOLE))
    (two,) = reader.answer([Ask(DOCUMENT, QUESTION, method=method, options=SHORT)])
    assert two.token_ids == alone(reader, left.text, QUESTION, "remamba")
    assert two.kept is not None and two.method == "bm25"
    spans = [(passage.start, passage.stop) for passage in answer.passages]
    assert all(any(a <= word.start < b for a, b in spans) for word in two.kept)


def opening_tokenizer() -> Any:
    """The tiny tokenizer, opening every text with its end token as a bos."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = END
    number = tokenizer.convert_tokens_to_ids(END)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, number)]
    )
    return tokenizer


def test_a_bos_and_a_prefix_stand_before_every_chunk(tmp_path: Path) -> None:
    reader = Reader(tiny_model(), opening_tokenizer())
    prefix = "Tom Hill plays. "
    ask = Ask(DOCUMENT, QUESTION, prefix=prefix, method=Chunks(40, 1), options=SHORT)
    (answer,) = reader.answer([ask])
    assert answer.passages is not None
    (passage,) = answer.passages
    shift = len(prefix)
    assert DOCUMENT[passage.start - shift : passage.stop - shift] == passage.text
    ids = encode(reader.tokenizer, prefix + DOCUMENT)
    begins = [i for i, place in enumerate(ids.offsets) if place[0] < shift or not place[1]]
    inside = [i for i, place in enumerate(ids.offsets)
              if passage.start <= place[0] and place[0] < place[1] <= passage.stop]  # fmt: skip
    question = reader.model.config.question_template.replace("{question}", QUESTION)
    asked = encode(reader.tokenizer, question, begins=False).ids
    row = [ids.ids[i] for i in [*begins, *range(inside[0], inside[-1] + 1)]]
    assert row[0] == reader.tokenizer.bos_token_id
    # white space between the prefix's tokens and the chunk's belongs to the chunk
    found = reader.model.generate(
        torch.tensor([row + asked]), method="plain", max_new_tokens=6, do_sample=False,
        pad_token_id=0, eos_token_id=reader.tokenizer.eos_token_id,
    )  # fmt: skip
    assert answer.token_ids == found[0, len(row + asked) :].tolist()
    read = reader.read(DOCUMENT, method=Chunks(40))
    read.save(tmp_path / "memory")
    loaded = reader.load(tmp_path / "memory")
    assert loaded.ids == read.ids and loaded.text == DOCUMENT
    assert loaded.chunks(40) == read.chunks(40)
    one, other = (d.ask(QUESTION, options=SHORT) for d in (read, loaded))
    assert (one.token_ids, one.passages) == (other.token_ids, other.passages)


@pytest.mark.parametrize("method", [Chunks(40), Chunks(40, 1), Bm25(50)])
def test_a_prompt_in_one_part_is_refused(method: Any) -> None:
    with pytest.raises(InputError, match="chooses parts of a document for a question"):
        make_reader().answer([Ask(prompt=DOCUMENT, method=method)])


def test_what_does_not_go_together_is_refused() -> None:
    reader = make_reader()
    read = reader.read(DOCUMENT)
    with pytest.raises(InputError, match="a prefix stands before a document that is given as text"):
        reader.answer([Ask(read, QUESTION, prefix="x")])
    with pytest.raises(InputError, match="read by one that needs no words itself"):
        Bm25(50, reader=Chunks(40, 3))
