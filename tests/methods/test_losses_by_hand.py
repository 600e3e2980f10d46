"""The losses of training, worked out on paper from their equations."""

import math

import pytest
import torch

from remamba.methods.losses import answer_loss, score_loss


def test_the_loss_of_the_answer_is_a_mean_over_tokens():
    """Three labelled tokens in two rows have the probabilities 3/4, 1/4 and 4/5."""
    likely = [[[3 / 4, 1 / 4]] * 2, [[1 / 2, 1 / 2], [1 / 5, 4 / 5]], [[1 / 2, 1 / 2]] * 2]
    logits = torch.tensor(likely).log()
    # the last position of a row predicts nothing
    logits = torch.cat([logits, torch.full((3, 1, 2), torch.nan)], dim=1).requires_grad_()
    labels = torch.tensor([[1, 0, 1], [0, -100, 1], [1, -100, -100]])
    loss, right = answer_loss(torch.nn.Identity(), logits, labels)
    assert loss.item() == pytest.approx(math.log(4 / 3 * 4 * 5 / 4) / 3)
    assert right.tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 0].tolist() == pytest.approx([-1 / 12, 1 / 12])
    assert gradient[2].abs().max() == 0


def test_without_labels_the_loss_of_the_answer_is_zero_with_a_gradient():
    logits = torch.ones(1, 3, 2, requires_grad=True)
    loss, right = answer_loss(torch.nn.Identity(), logits, torch.tensor([[1, -100, -100]]))
    assert loss == 0 and right.tolist() == [False]
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


def test_the_loss_of_the_score_at_masses_of_one_two_and_four():
    """exp(16 * score) is 1, 2, 4; the second counts only two positions: 1, 2."""
    scores = torch.tensor([[1.0, 2.0, 4.0]] * 2).log() / 16
    targets = torch.tensor([[False, True, False]] * 2)
    length = torch.tensor([3, 2])
    expected = (math.log(7 / 2) + math.log(3 / 2)) / 2
    assert score_loss(scores, targets, length).item() == pytest.approx(expected)
    # other documents with a mass of 7 and of 1 count in the denominator
    loss = score_loss(scores, targets, length, torch.tensor([7.0, 1.0]).log())
    assert loss.item() == pytest.approx((math.log(14 / 2) + math.log(4 / 2)) / 2)
