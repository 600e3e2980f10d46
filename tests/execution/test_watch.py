"""A watch notices whatever makes a captured graph or a known fingerprint wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from remamba.execution.watch import Watch
from remamba.pretrained import known_fingerprint
from tests.tiny import tiny_model


def as_another_dtype(module):
    """Where it lay, as after two conversions."""
    kept = module[1].bias.data
    module[1].bias.data = kept.view(torch.bfloat16)[:3]
    assert module[1].bias.data_ptr() == kept.data_ptr()


def written(module):
    with torch.no_grad():
        module[0].weight.add_(1)


def moved(module):
    module[1].bias.data = module[1].bias.data.clone()


def parameter(module):
    module[0].weight = nn.Parameter(module[0].weight.detach())


def part(module):
    module[1] = nn.Linear(3, 3)


def longer(module):
    module.append(nn.Linear(3, 3))


def removed(module):
    module[1].bias = None


def buffer(module):
    module[2].running_mean = torch.ones(3)


@pytest.mark.parametrize(
    "change", [written, as_another_dtype, moved, parameter, part, longer, removed, buffer]
)
def test_a_change_is_noticed(change):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    watch = Watch(module)
    module(torch.randn(2, 3))
    assert watch.is_current()
    change(module)
    assert not watch.is_current()
    assert watch.is_in_place() == (change is written)


def test_the_ends_are_looked_at_before_every_step():
    module, head = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 2)
    watch = Watch(module, head)
    assert watch.is_of(module, head) and not watch.is_of(module, nn.Linear(3, 2))
    written(module)
    assert watch.is_in_place_at_a_glance()
    head.bias.data = head.bias.data.clone()
    assert not watch.is_in_place_at_a_glance()
    watch = Watch(module, head)
    parameter(module)
    assert not watch.is_in_place_at_a_glance()


def test_known_are_the_classes_themselves_and_not_what_is_derived_from_them():
    class Adapter(nn.Linear):
        pass

    class Packed(nn.Parameter):
        pass

    linear = nn.Linear(3, 3)
    assert Watch(linear).is_known
    assert not Watch(linear, Adapter(3, 3)).is_known
    linear.weight = Packed(linear.weight.data)
    assert not Watch(linear).is_known


def test_hooks_and_replaced_forwards_are_noticed():
    module = nn.Sequential(nn.Linear(3, 3))
    watch = Watch(module)
    assert not watch.is_observed()
    for add in (module[0].register_forward_hook, module[0].register_forward_pre_hook):
        hook = add(lambda *_: None)
        assert watch.is_observed()
        hook.remove()
        assert not watch.is_observed()
    module[0].forward = lambda x: x
    assert watch.is_observed() and watch.is_current()


def test_a_model_made_in_inference_mode_can_be_watched():
    with torch.inference_mode():
        module = nn.Linear(3, 3)
    assert Watch(module).is_current()


def test_a_replaced_weight_has_another_fingerprint():
    model = tiny_model()
    first = known_fingerprint(model)
    assert known_fingerprint(model) == first
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}, assign=True)
    assert known_fingerprint(model) != first
