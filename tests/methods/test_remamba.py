"""What a prefill waits for and what it holds, told by tensors that have a shape and no values."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remamba import modeling_remamba
from remamba.execution import passes
from remamba.execution.passes import PassOptions
from remamba.execution.steps import finish
from remamba.methods import selection as compression
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.shorten import Drop, Last, Middle
from remamba.model import rows as door
from remamba.model.rows import enter
from tests.exactness import FORMS, questions, tokens
from tests.tiny import tiny_model

READERS: dict[str, Method] = {"drop": Plain(), "drop+remamba": ReMamba(FORMS["paper"])}
ALL_FORMS: dict[str, Method] = {
    **{name: ReMamba(form) for name, form in FORMS.items()},
    **{name: ReMamba(FORMS["paper"].replace(selector=name)) for name in ("random", "fixed")},
    **{name: Drop(start=0.1, length=0.5, reader=reader) for name, reader in READERS.items()},
    "last": Last(tokens=9),
    "middle": Middle(tokens=9),
    "plain": Plain(),
}
SHAPES = ("even", "ragged")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """Autocast knows no meta device, and may not even be asked about it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class OneDevice(TorchDispatchMode):
    """No op may mix tensors of the host and of the device: torch would copy, and wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}
        assert len(devices) < 2 or function in COPIES, f"{function} mixes {devices}"
        return function(*args, **(kwargs or {}))


def rows(shape: str, width: int = 30):
    """Token ids and a left-padded mask, both still on the host."""
    mask = torch.ones(2, width, dtype=torch.long)
    if shape == "ragged":
        mask[1, :7] = 0
    return tokens(2, width), mask


def away(ids, mask=None, **options):
    """A batch whose lengths are known and whose ids lie where nothing can be read."""
    batch = enter(ids, mask, **options)
    batch.input_ids = batch.input_ids.to("meta")
    return batch


@pytest.mark.parametrize("piece_length", [None, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ALL_FORMS)
def test_no_stage_waits(form, shape, piece_length):
    model = tiny_model("mamba2", num_hidden_layers=1).to("meta")
    ids, mask = rows(shape)
    batch = away(ids, mask, **questions(form, 4, 5))
    with torch.no_grad(), OneDevice():
        how = PassOptions(piece_length, tail=1)
        passage = finish(model.passing(batch, ALL_FORMS[form], None, model.new_cache(), how))
    assert passage.hidden.device.type == "meta" and passage.hidden.shape == (2, 1, 24)
    assert passage.lengths.device.type == "cpu"


@pytest.mark.parametrize("asked", [2, 6])
@pytest.mark.parametrize("form", ["whole", "before"])
def test_questions_on_a_memory_do_not_wait(form, asked):
    model = tiny_model("mamba2", num_hidden_layers=1).to("meta")
    with torch.no_grad(), OneDevice():
        batch = away(*rows("ragged"))
        memory, _ = finish(ReMamba(FORMS[form]).read(model, batch, PassOptions()))
        passage = finish(
            model.passing(away(tokens(asked, 5)), None, memory, None, PassOptions(tail=1))
        )
    assert passage.hidden.shape == (asked, 1, 24)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_forward_waits_at_its_door_and_at_its_end(form, shape, monkeypatch):
    waits = []

    def at_the_door(*given):
        assert any(x.device.type == "meta" for x in given)
        waits.append("door")
        ids, mask = rows(shape)
        return [mask.sum(1), mask.argmax(1), ids.new_zeros(2), *questions_of(form), *nothing()]

    def questions_of(form):
        return questions(form, 4, 5).values() or [torch.zeros(2, dtype=torch.long)]

    def nothing():
        return [torch.zeros(2, dtype=torch.long)] * 3

    monkeypatch.setattr(door, "to_host", at_the_door)
    monkeypatch.setattr(modeling_remamba, "check_finite", lambda _: waits.append("end"))
    model = tiny_model("mamba2", num_hidden_layers=1).to("meta")
    ids, mask = rows(shape)
    options = {"compression": FORMS[form], **questions(form, 4, 5)}
    with torch.no_grad(), OneDevice():
        model(ids.to("meta"), attention_mask=mask.to("meta"), logits_to_keep=1, **options)
    assert waits == ["door", "end"]


@pytest.mark.parametrize("form", ALL_FORMS)
def test_pieces_that_come_by_themselves_change_nothing(form, monkeypatch, assert_close):
    model, (ids, mask) = tiny_model("mamba"), rows("ragged")
    options = {"method": ALL_FORMS[form], "logits_to_keep": 5, **questions(form, 4, 5)}
    lengths = []
    model.backbone.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    with torch.no_grad():
        torch.manual_seed(0)
        whole = model(ids, mask, **options)
        monkeypatch.setattr(passes, "READ_AT_ONCE", 2 * 11)
        torch.manual_seed(0)
        lengths.clear()
        pieces = model(ids, mask, **options)
    is_short = form in ("last", "middle", "drop+remamba", "drop")
    assert max(lengths) == 11 or (is_short and max(lengths) < 11)
    assert_close(pieces.logits, whole.logits)
    lengths.clear()
    model(ids, mask, **options)
    assert is_short or max(lengths) > 22, "with gradients a text is read whole"


class Peak(TorchDispatchMode):
    """The most bytes of the device that were held at one time, new ones only."""

    def __init__(self, given):
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet([given.untyped_storage()])

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                self._add(x.untyped_storage())
        return out

    def _add(self, storage):
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, storage.nbytes())

    def _let_go(self, size):
        self.now -= size


def peak(model, length, method):
    """Bytes held at most by a prefill of one text, its ids apart."""
    batch = away(tokens(1, length))
    with torch.inference_mode(), Peak(batch.input_ids) as peak:
        finish(model.passing(batch, method, None, model.new_cache(), PassOptions(tail=1)))
    return peak.most


def test_long_texts_are_read_in_pieces_and_not_held(monkeypatch):
    monkeypatch.setattr(passes, "READ_AT_ONCE", 256)
    monkeypatch.setattr(compression, "SCORED_AT_ONCE", 256)
    model = tiny_model("mamba2", num_hidden_layers=1, hidden_size=96).to("meta")
    d, more, lengths = 4 * 96, 512, (1024, 1536)
    plain = [peak(model, length, Plain()) for length in lengths]
    assert plain[0] == plain[1], "plain Mamba holds a piece, whatever the length"
    twice = [peak(model, length, ReMamba(FORMS["exact"])) for length in lengths]
    # a place, a rank, alpha and the scores come to less than 40 bytes; 0.3 of the span is kept
    twice = [peak(model, length, ReMamba(FORMS["exact"])) for length in lengths]
    assert d / 2 * more <= twice[1] - twice[0] < (1.3 * d / 2 + 40) * more


def test_two_stages_hold_no_more_than_one_and_the_span():
    model, length = tiny_model("mamba2", num_hidden_layers=1, hidden_size=96).to("meta"), 600
    span = 4 * 96 * length // 2
    assert peak(model, length, ReMamba(FORMS["exact"])) < peak(model, length, Plain()) + span
