from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.errors import ConfigError
from fpe_hf.planning.budget import balanced
from fpe_hf.science.theory import (
    collision_approximation,
    collision_probability,
    expected_coverage,
    simulate,
    whole_probability,
)


@given(st.integers(1, 9), st.data())
def test_exact_probability_is_the_count_of_all_divisions(inputs: int, data: st.DataObject) -> None:
    variables = data.draw(st.integers(1, inputs))
    alpha = data.draw(st.integers(1, 4))
    expected = 0.0
    for size in balanced(inputs, alpha):
        sets = [set(chosen) for chosen in combinations(range(inputs), size)]
        expected += sum(set(range(variables)) <= chosen for chosen in sets) / len(sets)
    assert whole_probability(inputs, variables, alpha) == pytest.approx(expected)


@pytest.mark.parametrize(("literals", "alpha"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_theory_and_monte_carlo_agree(literals: int, alpha: int) -> None:
    collisions, coverage = simulate(24, 3, literals, 4, alpha, draws=4000, seed=1)
    assert collisions.mean == pytest.approx(
        collision_probability(24, literals, alpha), abs=4 * collisions.error
    )
    expected = expected_coverage(24, literals, 4, alpha)
    assert coverage.mean == pytest.approx(expected, abs=4 * coverage.error + 1e-12)


@given(st.integers(1, 3), st.integers(2, 5))
def test_many_inputs_lead_to_the_approximation(literals: int, alpha: int) -> None:
    exact = collision_probability(20_000 * alpha, literals, alpha)
    assert exact == pytest.approx(collision_approximation(literals, alpha), rel=0.01)


def test_a_dense_network_collides_everywhere_and_covers_everything() -> None:
    assert collision_probability(24, 3, 1) == 1.0
    assert expected_coverage(24, 3, 5, 1) == 1.0


def test_numbers_are_checked() -> None:
    with pytest.raises(ConfigError, match="variables=5"):
        whole_probability(4, 5, 2)
    with pytest.raises(ConfigError, match="disjoint"):
        simulate(4, 3, 2, 1, 2)
