"""`chunks` and `twice`: each is what reading the same tokens by hand gives."""

import math

import pytest
import torch

from remamba import InputError
from remamba.methods.chunks import Chunks, entropy
from remamba.methods.passages import split_chunks
from remamba.methods.twice import Twice
from tests.exactness import BACKBONES, tiny_model, tokens

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def by_hand(model, document, question, size):
    """The logits behind the question of each chunk, each prompt read whole and alone."""
    found = []
    for start in range(0, len(document), size):
        prompt = torch.tensor([document[start : start + size] + question])
        found.append(model(prompt, method="plain", logits_to_keep=1).logits[0, -1])
    return found


def test_entropy_by_hand():
    uniform, sure = torch.zeros(2, 8), torch.full((1, 8), -torch.inf)
    sure[0, 3] = 2.0
    assert entropy(uniform).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(sure).tolist() == [0.0]
    two = torch.tensor([[math.log(3.0), 0.0, -torch.inf]])  # 3/4 and 1/4
    assert entropy(two).item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


@pytest.mark.parametrize("backbone", BACKBONES)
class TestChunks:
    def test_each_chunk_is_the_prompt_read_whole(self, backbone):
        """40 chunks, more than are asked at one time, the last one shorter."""
        model = tiny_model(backbone)
        document, question = tokens(1, 39 * 32 + 5)[0].tolist(), [7, 8, 9]
        with torch.no_grad():
            rows = by_hand(model, document, question, 32)
            out = model(
                torch.tensor([document + question]), method=Chunks(32), use_cache=True,
                question_lengths=torch.tensor([3]), logits_to_keep=1,
            )  # fmt: skip
        best = min(range(len(rows)), key=lambda i: entropy(rows[i][None]).item())
        assert out.chosen.tolist() == [best]
        torch.testing.assert_close(out.logits[0, -1], rows[best], **CLOSE)
        with torch.no_grad():  # and decoding goes on from that chunk
            chunk = torch.tensor([document[32 * best : 32 * best + 32] + question])
            alone = model(chunk, method="plain", use_cache=True)
            step = torch.tensor([[5]])
            ours = model(step, cache_params=out.cache_params).logits
            theirs = model(step, cache_params=alone.cache_params).logits
        torch.testing.assert_close(ours, theirs, **CLOSE)

    def test_one_chunk_is_plain(self, backbone):
        model, ids = tiny_model(backbone), tokens(2, 40)
        with torch.no_grad():
            found = model(ids, method=Chunks(40), question_lengths=torch.tensor([4, 4])).logits
            plain = model(ids, method="plain").logits
        torch.testing.assert_close(found, plain[:, -4:], **CLOSE)

    def test_batch_is_alone(self, backbone):
        """Rows of other lengths, padded on the left."""
        model, ids = tiny_model(backbone), tokens(2, 150)
        mask = torch.ones_like(ids)
        mask[1, :47] = 0
        question = torch.tensor([6, 2])
        with torch.no_grad():
            both = model(ids, mask, method=Chunks(33), question_lengths=question, logits_to_keep=1)
            for row, start in ((0, 0), (1, 47)):
                alone = model(
                    ids[row : row + 1, start:], method=Chunks(33), logits_to_keep=1,
                    question_lengths=question[row : row + 1],
                )  # fmt: skip
                assert both.chosen[row] == alone.chosen[0]
                torch.testing.assert_close(both.logits[row], alone.logits[0], **CLOSE)

    def test_a_memory_is_the_document_itself(self, backbone, tmp_path):
        """Saved and not, read in pieces and whole, several questions and each alone."""
        model, document = tiny_model(backbone), tokens(1, 200)
        questions = tokens(3, 5)
        with torch.no_grad():
            memory = model.read(document, method=Chunks(64))
            memory.save(tmp_path / "memory")
            pieces = model.read(document, method=Chunks(64), piece_length=16)
            loaded = model.load_memory(tmp_path / "memory")
            assert (memory.batch_size, memory.documents) == (4, 1)
            assert loaded.method == Chunks(64) and loaded.lengths.tolist() == [64, 64, 64, 8]
            for row in range(3):
                whole = torch.cat([document, questions[row : row + 1]], dim=1)
                expected = model(whole, method=Chunks(64), question_lengths=torch.tensor([5]))
                for one in (memory, pieces, loaded):
                    found = model(questions, memory=one)
                    assert found.chosen[row] == expected.chosen[0]
                    torch.testing.assert_close(found.logits[row], expected.logits[0], **CLOSE)

    def test_twice_is_the_prompt_behind_itself(self, backbone):
        model, ids = tiny_model(backbone), tokens(2, 20)
        mask = torch.ones_like(ids)
        mask[1, 12:] = 0
        with torch.no_grad():
            found = model(ids, mask, method="twice", use_cache=True)
            last = model(ids, mask, method=Twice(), logits_to_keep=1).logits[:, -1]
            for row, length in ((0, 20), (1, 12)):
                prompt = ids[row : row + 1, :length]
                double = model(torch.cat([prompt, prompt], dim=1), method="plain").logits[0]
                torch.testing.assert_close(found.logits[row, :length], double[length:], **CLOSE)
                torch.testing.assert_close(last[row], double[-1], **CLOSE)


def test_of_equals_the_first_chunk_answers():
    model = tiny_model("mamba")
    document = tokens(1, 40)[0].tolist() * 3
    out = model(
        torch.tensor([[*document, 5, 6]]), method=Chunks(40), question_lengths=torch.tensor([2])
    )
    assert out.chosen.tolist() == [0]


def test_a_random_chunk_follows_the_seed():
    model, ids = tiny_model("mamba"), tokens(1, 40 * 12 + 2)
    drawn = []
    for seed in (1, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        method = Chunks(40, choice="random")
        out = model(ids, method=method, question_lengths=torch.tensor([2]), logits_to_keep=1)
        drawn.append(int(out.chosen))
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2 and method.draws


def test_values_that_are_not_finite_are_told():
    model = tiny_model("mamba")
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        model.eval()(tokens(1, 80), method=Chunks(32), question_lengths=torch.tensor([2]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m(tokens(1, 80), method=Chunks(32)), "needs a document and a question"),
        (
            lambda m: m(
                tokens(1, 80), method=Chunks(32, 3), question_lengths=torch.tensor([2])
            ),
            "candidates = 3 ranks chunks by their words",
        ),
        (lambda m: m.read(tokens(2, 80), method=Chunks(32)), "holds one document, and 2 are given"),
        (lambda m: m.read(tokens(1, 80), method="twice"), "no memory can stand for it"),
        (lambda m: m.read(tokens(1, 80), method="bm25"), "chooses by words"),
        (
            lambda m: m(tokens(1, 3), memory=m.read(tokens(1, 80), method="plain"),
                        method=Chunks(32)),
            "read by the method plain, and chunks needs one of chunks",
        ),
        (lambda m: Chunks(31), "tokens = 31: give a number from 32 on"),
        (lambda m: Chunks(40, 0), "candidates = 0: give a number from 1 on"),
        (lambda m: Chunks(40, choice="best"), "choose one of entropy, random"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(call, said):
    with pytest.raises(InputError, match=said) as caught:
        call(tiny_model("mamba"))
    assert "\n" not in str(caught.value)


def words(text):
    """A token a word, the space before it with it; a line end is one."""
    places, start = [], 0
    for word in text.replace("\n", " \n").split(" "):
        stop = start + len(word)
        places.append((start, stop))
        start = stop if text[stop : stop + 1] == "\n" else stop + 1
    return places


def test_chunks_end_where_sentences_do():
    """By hand: sentences of 4, 3, 4 and 2 words; a chunk has 8."""
    text = "One two three four. Five six seven. Eight nine ten eleven. Twelve more."
    assert split_chunks(text, words(text), 8) == [(0, 7), (7, 13)]
    assert split_chunks(text, words(text), 4) == [(0, 4), (4, 7), (7, 11), (11, 13)]
    assert split_chunks(text, words(text), 3) == [(0, 3), (3, 4), (4, 7), (7, 10), (10, 13)]
    assert split_chunks(text, words(text), 99) == [(0, 13)]
    assert split_chunks("", [], 9) == []


@pytest.mark.parametrize("most", [1, 2, 5, 9, 40])
def test_chunks_are_the_whole_document_once(most):
    text = "A b c.\n\n\nD e f g h i.  J k.\n" * 3 + "Lmnop qrs tuv wxy z" * 2
    places = [(i, i + 1) for i in range(len(text))]
    chunks = split_chunks(text, places, most)
    assert [token for first, end in chunks for token in range(first, end)] == [*range(len(text))]
    assert max(end - first for first, end in chunks) <= most
