"""Every cell of the exactness matrix, on every backbone."""

import pytest
import torch

from tests.exactness import BACKBONES, BOUND, CELLS, kernel_equals_reference


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("cell", CELLS, ids=lambda name: name.replace(" ", "_"))
def test_cell_is_within_its_bound(cell, backbone):
    function = CELLS[cell]
    with torch.set_grad_enabled(function is kernel_equals_reference):
        assert function(backbone) < BOUND
