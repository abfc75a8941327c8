from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fpe_hf


@pytest.mark.parametrize("budget", [1.0, 0.4])
def test_an_open_model_takes_the_tensors_of_a_closed_one(budget: float) -> None:
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Linear(12, 6), nn.GELU(), nn.Linear(6, 5))
    inputs = (torch.randn(3, 12),)
    opened = fpe_hf.widen(
        parent, split="learned", bias="child", budget=budget, example_inputs=inputs
    )
    closed = copy.deepcopy(opened)
    fpe_hf.BudgetSchedule(closed, 10).close()
    opened.load_state_dict(closed.state_dict())
    assert fpe_hf.audit(opened).ok
    assert torch.equal(opened(*inputs), closed(*inputs))
