"""The loss on the score: targets, several things to find, what they are told from."""

import pytest
import torch
import torch.nn.functional as F

from remamba.errors import InputError
from remamba.execution.steps import finish
from remamba.methods.losses import mass_elsewhere, score_loss
from remamba.methods.selection import Compressor
from tests.exactness import FORMS, tiny_model, tokens


def test_score_loss_is_cross_entropy_for_one_target_and_mass_for_several():
    scores = torch.rand(3, 5, requires_grad=True)
    targets = torch.zeros(3, 5, dtype=torch.bool)
    targets[0, 2] = True
    targets[1, [0, 3]] = True
    length = torch.tensor([5, 4, 5])
    first = F.cross_entropy(16 * scores[:1], torch.tensor([2]))
    mass = F.softmax(16 * scores[1, :4], -1)[[0, 3]].sum()
    loss = score_loss(scores, targets, length)
    torch.testing.assert_close(loss, (first - mass.log()) / 2)
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[2].abs().max() == 0, "a row without a target carries no loss"
    assert score_loss(scores, torch.zeros_like(targets), torch.tensor([5, 0, 1])) == 0


def test_score_loss_asks_for_each_of_several_things():
    scores = torch.rand(3, 5, requires_grad=True)
    targets = torch.zeros(3, 5, 3, dtype=torch.bool)
    targets[0, 1, 0] = targets[0, [1, 3], 1] = True  # two things, of three
    targets[1, 0, 0] = targets[1, 4, 2] = True  # the second lies past the row's end
    length = torch.tensor([5, 4, 5])
    share = [F.softmax(16 * scores[row, :size], -1) for row, size in enumerate((5, 4))]
    first = -(share[0][1].log() + (share[0][1] + share[0][3]).log()) / 2
    loss = score_loss(scores, targets, length)
    torch.testing.assert_close(loss, (first - share[1][0].log()) / 2)
    loss.backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[2].abs().max() == 0
    one = targets[..., :1]
    assert score_loss(scores, one, length) == score_loss(scores, one[..., 0], length)


def test_other_documents_count_as_if_all_were_one():
    torch.manual_seed(0)
    compressor, documents, m, per = Compressor(8), 3, 5, 2
    hidden, asked = torch.randn(documents, m, 8), torch.randn(documents * per, 8)
    length = torch.tensor([5, 3, 4])
    targets = torch.zeros(documents * per, m, dtype=torch.bool)
    targets[:, 1] = True
    scores = finish(compressor.scores(hidden, asked))
    elsewhere = mass_elsewhere(compressor, hidden, asked, length)
    loss = score_loss(scores, targets, length.repeat_interleave(per), elsewhere)

    one = torch.cat([states[:size] for states, size in zip(hidden, length, strict=True)])
    place = 1 + (length.cumsum(0) - length).repeat_interleave(per)
    as_one = finish(compressor.scores(one[None], asked))
    torch.testing.assert_close(loss, F.cross_entropy(16 * as_one, place))
    found, wanted = (
        torch.autograd.grad(value, list(compressor.key_proj.parameters()))
        for value in (loss, F.cross_entropy(16 * as_one, place))
    )
    torch.testing.assert_close(found, wanted)


def test_empty_spans_elsewhere_change_nothing_and_leave_gradients_finite():
    torch.manual_seed(0)
    compressor, hidden, asked = Compressor(8), torch.randn(2, 4, 8), torch.randn(2, 8)
    length = torch.tensor([4, 0])
    targets = torch.eye(2, 4, dtype=torch.bool)
    scores = finish(compressor.scores(hidden, asked))
    elsewhere = mass_elsewhere(compressor, hidden, asked, length)
    loss = score_loss(scores, targets, length, elsewhere)
    torch.testing.assert_close(loss, score_loss(scores, targets, length))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in compressor.key_proj.parameters())


def test_a_model_tells_targets_from_the_rest_of_its_batch():
    model, rows = tiny_model("mamba2"), tokens(3, 9, seed=1)
    documents, other = tokens(3, 25), tokens(3, 25, seed=2)
    targets = torch.rand(3, 25, generator=torch.Generator().manual_seed(0)) < 0.2

    def loss(documents, negatives="document", rows=rows, targets=targets):
        return model(
            rows, document_ids=documents, compression=FORMS["whole"], score_targets=targets,
            score_negatives=negatives,
        ).score_loss  # fmt: skip

    changed = torch.cat([documents[:1], other[1:]])
    one = {"rows": rows[:1], "targets": targets[:1]}
    torch.testing.assert_close(loss(documents[:1], "batch", **one), loss(documents[:1], **one))
    only_first = targets & torch.tensor([[True], [False], [False]])
    torch.testing.assert_close(
        loss(documents, targets=only_first), loss(changed, targets=only_first)
    )
    first, second = (loss(some, "batch", targets=only_first) for some in (documents, changed))
    assert loss(documents, targets=only_first) < min(first, second) and first != second
    with pytest.raises(InputError, match="score_negatives='all' is unknown; choose"):
        loss(documents, "all")
