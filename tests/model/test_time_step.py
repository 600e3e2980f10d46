"""Eq. 8: what alpha and Theta do to the time step."""

import pytest
import torch
import torch.nn.functional as F

from remamba.model.time_step import Adaption, DtAdaption


def adapt(dt, adaption, theta, bias=None):
    module = DtAdaption(len(theta))
    module.theta.data.copy_(theta)
    return module(dt, adaption, bias)


@pytest.fixture
def case():
    projected, bias, theta = torch.randn(2, 4, 3), torch.randn(3), torch.randn(3)
    selected = torch.tensor([[True, True, False, False], [False, True, True, False]])
    alpha = torch.where(selected, torch.rand(2, 4), 1.0)
    return projected, bias, theta, alpha, selected


def test_alpha_scales_the_projection_and_not_the_bias(case):
    projected, bias, theta, alpha, selected = case
    found = adapt(projected + bias, Adaption(alpha, selected, False), theta, bias)
    expected = alpha.unsqueeze(-1) * projected + theta + bias
    torch.testing.assert_close(found[selected], expected[selected])
    assert torch.equal(found[~selected], (projected + bias)[~selected])


def test_alpha_zero_leaves_theta_and_bias(case):
    projected, bias, theta, _, selected = case
    found = adapt(projected, Adaption(torch.zeros(2, 4), selected, False), theta)
    torch.testing.assert_close(found[selected], theta.expand(int(selected.sum()), 3))
    assert (F.softplus(found[selected] + bias) > 0).all()


def test_exact_form_leaves_alpha_to_the_scan(case):
    projected, _, theta, alpha, selected = case
    adaption = Adaption(alpha, selected, True)
    found = adapt(projected, adaption, theta)
    torch.testing.assert_close(found[selected], (projected + theta)[selected])
    assert torch.equal(adaption.dt_scale, alpha)


def test_a_piece_of_the_adaption_is_that_of_the_piece(case):
    projected, bias, theta, alpha, selected = case
    adaption = Adaption(alpha, selected, False)
    whole = adapt(projected, adaption, theta, bias)
    parts = [
        adapt(projected[:, a:b], adaption.piece(a, b), theta, bias) for a, b in ((0, 1), (1, 4))
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
