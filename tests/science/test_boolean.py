from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.errors import ConfigError
from fpe_hf.science.boolean import DNF, random_dnf, sample

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3))


@given(SHAPES, st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_formula_is_the_or_of_the_ands_of_its_literals(
    shape: tuple[int, int], disjoint: bool, negations: bool, seed: int
) -> None:
    clauses, literals = shape
    formula = random_dnf(14, clauses, literals, disjoint=disjoint, negations=negations, seed=seed)
    x = torch.randint(2, (40, 14), generator=torch.Generator().manual_seed(seed)).bool()
    found = formula(x)
    for row, value in zip(x.tolist(), found.tolist(), strict=True):
        expected = any(
            all(row[v] == p for v, p in zip(variables, positive, strict=True))
            for variables, positive in zip(
                formula.variables.tolist(), formula.positive.tolist(), strict=True
            )
        )
        assert value == expected
    variables = formula.variables.flatten().tolist()
    assert not disjoint or len(set(variables)) == len(variables)
    assert all(len(set(row)) == literals for row in formula.variables.tolist())
    assert len({tuple(row) for row in formula.variables.tolist()}) == clauses


@given(st.booleans(), st.integers(0, 99), st.integers(2, 101), st.floats(0, 1))
def test_examples_are_balanced_and_hard_ones_miss_one_literal(
    disjoint: bool, seed: int, count: int, hard: float
) -> None:
    formula = random_dnf(16, 4, 3, disjoint=disjoint, seed=seed)
    examples = sample(formula, count, hard=hard, seed=seed)
    assert len(examples) == count
    assert int(examples.y.sum()) == count // 2
    assert torch.equal(examples.y, formula(examples.x))
    false = examples.x[~examples.y]
    near = (formula.literals(false).sum(-1) == 2).any(1)
    assert int(near.sum()) >= round(hard * len(false))
    again = sample(formula, count, hard=hard, seed=seed)
    assert torch.equal(again.x, examples.x)


@given(st.booleans(), st.integers(0, 99), st.integers(2, 101))
def test_true_examples_can_be_kept_to_one_true_clause(
    disjoint: bool, seed: int, count: int
) -> None:
    formula = random_dnf(16, 4, 3, disjoint=disjoint, negations=True, seed=seed)
    examples = sample(formula, count, single=True, seed=seed)
    assert torch.equal(examples.y, formula(examples.x))
    assert int(examples.y.sum()) == count // 2
    assert bool((formula.clauses(examples.x[examples.y]).sum(1) == 1).all())


def test_density_is_that_of_the_background() -> None:
    formula = random_dnf(200, 2, 2, seed=0)
    free = torch.ones(200, dtype=torch.bool)
    free[formula.variables.flatten()] = False
    for density in (0.0, 0.1, 0.5, 1.0):
        examples = sample(formula, 500, density=density)
        assert float(examples.x[:, free].float().mean()) == pytest.approx(density, abs=0.01)


def test_clauses_are_drawn_evenly() -> None:
    formula = random_dnf(16, 4, 2, seed=0)
    examples = sample(formula, 4000, single=True)
    shares = formula.clauses(examples.x[examples.y]).float().mean(0)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.04)


def test_seeds_differ() -> None:
    formula = random_dnf(32, 8, 3, seed=1)
    assert not torch.equal(formula.variables, random_dnf(32, 8, 3, seed=2).variables)
    assert not torch.equal(sample(formula, 50, seed=1).x, sample(formula, 50, seed=2).x)


def test_the_dataset_view_holds_the_same() -> None:
    examples = sample(random_dnf(12, 3, 2), 20)
    dataset = examples.to_dataset().with_format("torch")
    assert torch.equal(dataset["label"][:].bool(), examples.y)
    assert torch.equal(dataset["x"][:].bool(), examples.x)
    assert dataset.features["label"].names == ["false", "true"]


def test_a_formula_reads_well() -> None:
    formula = DNF(4, torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True, False], [True, True]]))
    assert str(formula) == "(x0 & ~x1) | (x2 & x3)"


def test_impossible_formulas_are_refused() -> None:
    with pytest.raises(ConfigError, match="disjoint clauses need at least 24"):
        random_dnf(23, 8, 3)
    with pytest.raises(ConfigError, match="cannot all differ"):
        random_dnf(3, 4, 2, disjoint=False)
    with pytest.raises(ConfigError, match=r"hard=2\.0"):
        sample(random_dnf(8, 2, 2), 10, hard=2.0)
    with pytest.raises(ConfigError, match=r"density=-0\.1"):
        sample(random_dnf(8, 2, 2), 10, density=-0.1)
    everything = DNF(1, torch.tensor([[0], [0]]), torch.tensor([[True], [False]]))
    with pytest.raises(ConfigError, match="too few"):
        sample(everything, 10)
