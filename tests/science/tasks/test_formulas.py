from __future__ import annotations

import pytest
import torch

import fpe_hf
from fpe_hf.science.tasks import formulas
from fpe_hf.science.tasks.formulas import clause_figures

CLAUSES = torch.tensor([[0, 1], [2, 3]])


def test_clauses_in_one_child_are_counted() -> None:
    mask = torch.zeros(2, 1, 8, dtype=torch.bool)
    mask[0, 0, [0, 1, 2, 4]] = True  # the first clause, and half of the second
    mask[1, 0, [3, 5, 6, 7]] = True
    found = clause_figures(mask, CLAUSES)
    assert found["whole"] == found["together"] == 0.5
    assert found["chance"] == pytest.approx(2 * 6 / 28)  # pairs within 4 + 4, of pairs within 8


def test_clauses_that_are_not_read_do_not_count() -> None:
    mask = torch.zeros(2, 2, 8, dtype=torch.bool)
    mask[0, 0, [0, 1]] = True
    found = clause_figures(mask, CLAUSES)
    assert (found["whole"], found["together"], found["chance"]) == (0.5, 1.0, 1.0)


def test_chance_is_that_of_a_random_split() -> None:
    clauses = torch.arange(24).view(8, 3)
    split = torch.rand(4000, 30).argsort(1) % 2
    mask = torch.stack([split == child for child in (0, 1)])
    found = clause_figures(mask, clauses)
    assert found["together"] == pytest.approx(found["chance"], abs=0.01)


def test_formulas_differ_by_seed_and_models_are_measured() -> None:
    one, other = (formulas.formulas(seed) for seed in (0, 1))
    assert not torch.equal(one.data.x, other.data.x)
    assert torch.equal(one.data.x, formulas.formulas(0).data.x)
    assert one.measure is not None
    model = one.build(4)
    assert one.measure(model) == {}
    x = torch.zeros(2, one.data.x.shape[1])
    widened = fpe_hf.widen(model, alpha=2, bias="child", example_inputs=(x,))
    assert 0.2 < one.measure(widened)["together"] < 0.8
    assert 0 <= one.score(widened) <= 100
