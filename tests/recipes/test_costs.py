from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModel

import fpe_hf
from fpe_hf.models.configs import MLPClassifierConfig
from fpe_hf.recipes.costs import Cost, cost_of

INPUTS = {"features": torch.ones(4, 64)}
WEIGHTS = 64 * 8 + 8 * 10


@pytest.fixture(scope="module")
def dense() -> torch.nn.Module:
    config = MLPClassifierConfig(num_features=64, hidden_sizes=[8], num_labels=10)
    model: torch.nn.Module = AutoModel.from_config(config)
    return model


def test_six_operations_per_weight(dense: torch.nn.Module) -> None:
    assert cost_of(dense, INPUTS) == Cost(6 * WEIGHTS, WEIGHTS + 8 + 10)
    assert dense.training


def test_frozen_parameters_are_not_trained(dense: torch.nn.Module) -> None:
    model = copy.deepcopy(dense).eval()
    model.get_submodule("layers.0").requires_grad_(False)
    assert cost_of(model, INPUTS).parameters == 8 * 10 + 10
    assert not model.training


@pytest.mark.parametrize(("layout", "times"), [("element", 2), ("block", 1)])
def test_as_computed(layout: str, times: int, dense: torch.nn.Module) -> None:
    """The matrix of `element` is multiplied whole; `block` multiplies what there is."""
    options = {"targets": ["layers"], "layout": layout, "example_inputs": INPUTS}
    found = cost_of(fpe_hf.widen(copy.deepcopy(dense), **options), INPUTS)
    assert found == Cost(6 * times * WEIGHTS, WEIGHTS + 8 + 10)


def test_one_training_after_the_other() -> None:
    assert Cost(4.0, 9).then(Cost(8.0, 7), 0.25) == Cost(7.0, 9)
