"""The meter: what counts as found."""

from __future__ import annotations

import torch

from remamba.methods.selection import Kept
from remamba.modeling_base import ReMambaOutput
from remamba.train.meter import best_on_target


def test_the_best_score_may_stand_on_a_target_of_any_span() -> None:
    index = torch.tensor([[1, 3, 4], [0, 2, 0], [1, 2, 3]])
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.1, 0.2, 0.0], [0.1, 0.2, 0.3]])
    out = ReMambaOutput()
    out.kept = Kept(index, scores, torch.zeros(3, 3, 2), torch.tensor([3, 2, 3]))
    targets = torch.zeros(3, 5, 2, dtype=torch.bool)
    targets[0, 1, 0] = targets[0, 3, 1] = True  # found in the second span
    targets[1, 0, 0] = True  # not found; the third row has nothing to find
    assert [int(n) for n in best_on_target(out, targets)] == [1, 2]
    for span, expected in ((0, [0, 2]), (1, [1, 1])):
        assert [int(n) for n in best_on_target(out, targets[..., span])] == expected
