"""The registry of methods, what each reads, and small cases worked out by hand."""

import pytest
import torch

from remamba import CompressionConfig, DocumentMemory, InputError
from remamba.execution.passes import PassOptions
from remamba.execution.steps import finish
from remamba.methods.base import METHODS, method_class, method_of, recorded_method
from remamba.methods.plain import Plain
from remamba.methods.reference import choose, two_stages
from remamba.methods.remamba import ReMamba
from remamba.methods.shorten import Drop, Last, Middle
from remamba.model.rows import enter
from tests.exactness import BACKBONES, FORMS, tiny_model, tokens

SHORTENERS = {
    "last": (Last(tokens=4), [6, 7, 8, 9]),
    "middle": (Middle(tokens=5), [0, 1, 7, 8, 9]),
    "drop": (Drop(start=0.25, length=0.5), [0, 1, 7, 8, 9]),
}
"""What each leaves of a document of ten tokens, worked out by hand: drop leaves floor(2.5) = 2 in
front, and takes ceil(5) = 5 away."""


@pytest.mark.parametrize("name", METHODS)
def test_every_name_is_a_method_that_survives_its_dict(name):
    method = method_of(name)
    assert type(method) is method_class(name)
    assert method.name == name
    assert method_of(method.to_dict()) == method
    assert method_of(method) is method
    assert method.in_words().endswith(".")
    assert METHODS[name][1]


def test_a_method_behind_a_plus_reads_what_is_left():
    settings = CompressionConfig(length=1.0, num_kept=3)
    method = method_of("last+remamba", settings)
    assert method == Last(reader=ReMamba(settings))
    assert method_of(method.to_dict()) == method
    assert method.needs_training is False


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("none", "now called plain"),
        ("truncate", "now called last"),
        ("best", "'best' is no method; choose one of plain, remamba"),
        ("plain+remamba", "'plain' does not shorten"),
        ({"name": "last", "words": 3}, "unknown option 'words' of the method last; known are"),
        ({"name": "plain", "tokens": 3}, "known are none"),
        ({}, "'' is no method"),
        ({"name": "last", "tokens": 0}, "tokens = 0: give a number from 1 on"),
        ({"name": "drop", "start": 0.5, "length": 0.6}, "swallow the last token"),
    ],
    ids=str,
)
def test_what_is_no_method_is_refused_in_one_line(wanted, said):
    with pytest.raises(InputError, match=said) as caught:
        method_of(wanted)
    assert "\n" not in str(caught.value)


def test_runs_of_version_0_1_tell_their_method():
    old = {"start": 0.0, "length": 0.18, "keep_ratio": 0.009, "num_kept": None, "selector": "topk",
           "score_gradient": "scaled", "min_prompt_length": 0}  # fmt: skip
    assert recorded_method({"compression": None}) == Plain()
    assert recorded_method({"compression": old}) == ReMamba(CompressionConfig())
    assert recorded_method({"compression": {**old, "selector": "none"}}) == Plain()
    assert recorded_method({"compression": {**old, "selector": "drop"}}) == Drop(0.0, 0.18)
    assert recorded_method({"method": Last(7).to_dict()}) == Last(7)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", SHORTENERS)
class TestShorteners:
    def test_what_is_left_is_read(self, name, backbone):
        method, left = SHORTENERS[name]
        model, ids = tiny_model(backbone), tokens(2, 13)
        rows = torch.cat([ids[:, left], ids[:, 10:]], dim=1)
        with torch.no_grad():
            expected = model(rows, compression=False).logits
            found = model(ids, method=method, question_lengths=torch.tensor([3, 3])).logits
        torch.testing.assert_close(found, expected)

    def test_labels_move_and_answers_stay(self, name, backbone):
        method, left = SHORTENERS[name]
        model, ids = tiny_model(backbone), tokens(1, 13)
        labels = torch.where(torch.arange(13) < 11, -100, ids)
        out = model(ids, labels=labels, method=method, question_lengths=torch.tensor([1]))
        assert out.labels[0].tolist() == [-100] * len(left) + labels[0, 10:].tolist()

    def test_memory_equals_unsplit_and_saved_equals_kept(self, name, backbone, tmp_path):
        method, _ = SHORTENERS[name]
        model, ids, asked = tiny_model(backbone), tokens(2, 10), tokens(4, 3, seed=2)
        whole = torch.cat([ids.repeat_interleave(2, 0), asked], dim=1)
        with torch.no_grad():
            memory = model.read(ids, method=method)
            memory.save(tmp_path / "memory")
            expected = model(whole, method=method, question_lengths=torch.tensor([3] * 4)).logits
            for one in (memory, model.load_memory(tmp_path / "memory")):
                assert one.method == method
                found = model(asked, memory=one).logits
                torch.testing.assert_close(found, expected[:, -3:], rtol=1e-5, atol=1e-5)

    def test_rows_of_a_batch_are_as_alone(self, name, backbone):
        method, _ = SHORTENERS[name]
        model, ids = tiny_model(backbone), tokens(2, 13)
        mask = torch.ones_like(ids)
        mask[1, :5] = 0
        question = torch.tensor([3, 2])
        with torch.no_grad():
            out = model(ids, mask, method=method, question_lengths=question)
            alone = model(ids[1:, 5:], method=method, question_lengths=question[1:]).logits[0]
        torch.testing.assert_close(out.logits[1, -len(alone) :], alone, rtol=1e-5, atol=1e-5)


def test_short_documents_and_last_tokens_stay():
    nothing = torch.tensor([0, 0])
    lengths = torch.tensor([3, 9])
    assert [x.tolist() for x in Last(4).left_out(lengths, lengths - 1)] == [[0, 0], [0, 5]]
    assert [x.tolist() for x in Middle(4).left_out(lengths, lengths - 1)] == [[2, 2], [2, 7]]
    assert [x.tolist() for x in Middle(1).left_out(lengths, lengths - 1)] == [[0, 0], [2, 8]]
    spans = Drop(0.0, 1.0).left_out(lengths, lengths - 1)
    assert [x.tolist() for x in spans] == [nothing.tolist(), [2, 8]]


def test_one_call_takes_one_way_of_reading():
    model, ids = tiny_model("mamba"), tokens(1, 12)
    with pytest.raises(InputError, match="give either method='plain' or compression=False"):
        model(ids, method="plain", compression=False)
    with pytest.raises(InputError, match="unknown compression setting 'rho'"):
        model(ids, compression={"rho": 1})
    with pytest.raises(InputError, match="leaves nothing of a document"):
        model.read(ids, method=Drop(0.0, 1.0))
    memory = model.read(ids, method=Last(4))
    for other in ("plain+", Last(5)):
        with pytest.raises(InputError):
            model(ids, memory=memory, method=other)
    plain = model.read(ids, method="plain")
    with pytest.raises(InputError, match="with the method plain, which does not hold"):
        model(ids, memory=plain, compression=FORMS["whole"])


@pytest.mark.parametrize("lengths", [(30, 30), (30, 17)])
@pytest.mark.parametrize("placement", ["replace", "before_question"])
def test_a_memory_of_more_serves_a_span_within(placement, lengths):
    """As the memory that was read with the narrower settings itself, to the bit."""
    model, ids = tiny_model("mamba"), tokens(2, 30)
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    wide = CompressionConfig(start=0.1, length=0.9, keep_ratio=0.5, placement="before_question")
    narrow = CompressionConfig(start=0.2, length=0.4, num_kept=3, placement="before_question")
    if placement == "replace":
        wide, narrow = CompressionConfig(length=1.0, num_kept=3), wide
    asked = tokens(4, 5)
    with torch.no_grad():
        memory = model.read(ids, mask, compression=wide)
        found = model(asked, memory=memory, compression=narrow)
        own = model(asked, memory=model.read(ids, mask, compression=narrow))
    assert torch.equal(found.logits, own.logits)
    assert torch.equal(found.kept.index, own.kept.index)
    assert [x.tolist() for x in found.span] == [x.tolist() for x in own.span]
    less = model.read(ids, mask, compression=narrow)
    with pytest.raises(InputError, match="which does not hold the states of"):
        model(asked, memory=less, compression=CompressionConfig(length=1.0))


def test_the_models_own_method_is_the_default():
    ids = tokens(1, 20)
    for name in ("plain", "drop", "remamba"):
        settings = CompressionConfig(start=0.1, length=0.5, num_kept=3)
        model = tiny_model("mamba", method=name, compression=settings)
        expected = {"plain": Plain(), "drop": Drop(0.1, 0.5), "remamba": ReMamba(settings)}[name]
        assert model.resolve_method() == expected
        with torch.no_grad():
            assert torch.equal(model(ids).logits, model(ids, method=expected).logits)
    model.config.method = "nonsense"
    with pytest.raises(InputError, match="'nonsense' is no method"):
        model(ids)


# Ten tokens whose scores are given: what the paper says of them, worked out by hand.
SCORES = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.0, 0.7])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"num_kept": 3}, [1, 4, 7]),
        ({"keep_ratio": 0.25}, [1, 4]),  # ceil(0.25 * 8) = 2
        ({"keep_ratio": 0.26}, [1, 4, 7]),  # ceil(2.08) = 3
        ({"num_kept": 3, "window": 2}, [0, 1, 4]),  # 1 brings 0, 4 comes before its own 3
        ({"num_kept": 4, "window": 2}, [0, 1, 3, 4]),
        ({"num_kept": 3, "selector": "fixed"}, [2, 5, 7]),  # ends of 8/3, 16/3, 8
        ({"num_kept": 20}, list(range(8))),
    ],
    ids=str,
)
def test_which_positions_are_kept(options, kept):
    settings = CompressionConfig(**options)
    assert choose(SCORES, settings)[1] == kept


def test_the_sequence_of_stage_2_by_hand():
    """Twelve tokens, s = 0.25, p = 0.5: three stay, six are compressed, three stay."""
    model, ids = tiny_model("mamba"), tokens(12)
    labels = torch.arange(40, 52)
    embeds = model.backbone.embeddings(ids)
    hidden = model.backbone(embeds[None])[0]
    settings = CompressionConfig(start=0.25, length=0.5, num_kept=2, adaption="none")
    with torch.no_grad():
        for placement, before, after in (("replace", 3, 9), ("append", 12, 12)):
            way = settings.replace(placement=placement)
            found = two_stages(model, ids, way, labels=labels)
            assert len(found.scores) == 6
            best = sorted((3 + found.scores.topk(2).indices).tolist())
            assert found.kept == best
            vectors = model.compressor.value_proj(hidden[best])
            sequence = torch.cat([embeds[:before], vectors, embeds[after:]])
            logits = model.lm_head(model.backbone(sequence[None])[0])
            torch.testing.assert_close(found.logits, logits)
            moved = [*range(40, 40 + before), -100, -100, *range(40 + after, 52)]
            assert found.labels.tolist() == moved
            out = model(ids[None], labels=labels[None], compression=way,
                        prompt_lengths=torch.tensor([12]))  # fmt: skip
            torch.testing.assert_close(out.logits[0], logits, rtol=1e-5, atol=1e-5)
            assert out.labels[0].tolist() == moved
            assert [at for at, _ in out.kept.rows()[0]] == best


def test_the_last_token_of_a_prompt_is_never_compressed():
    model, ids = tiny_model("mamba"), tokens(1, 6)
    whole = CompressionConfig(length=1.0, keep_ratio=1.0)
    found = model(ids, compression=whole)
    assert [at for at, _ in found.kept.rows()[0]] == [0, 1, 2, 3, 4]
    assert two_stages(model, ids[0], whole).kept == [0, 1, 2, 3, 4]
    one = model(ids[:, :1], compression=whole)
    assert one.kept.rows() == [[]]


def test_a_memory_knows_its_method():
    model, batch = tiny_model("mamba"), enter(tokens(2, 9))
    memory, states = finish(Plain().read(model, batch, PassOptions(with_stage1=True)))
    assert isinstance(memory, DocumentMemory)
    assert memory.method == Plain()
    assert memory.hidden.shape == (2, 0, 24)
    assert states.shape == (2, 9, 24)
