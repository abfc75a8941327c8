from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.config import FPEConfig
from fpe_hf.planning.budget import TileColumns, affordable, balanced, extra_numbers

SIZES = st.integers(1, 200)


@given(st.integers(0, 500), st.integers(1, 64))
def test_balanced_groups_are_those_of_the_random_split(total: int, groups: int) -> None:
    ranks = [rank * groups // total for rank in range(total)]
    sizes = balanced(total, groups)
    assert sizes == tuple(ranks.count(group) for group in range(groups))
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1


@given(st.floats(0.05, 1.0), st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_parts_never_cost_more_than_the_whole(budget: float, parts: list[int]) -> None:
    """Floats would: 0.09 of 100 is 9, five times, and of 500 it is 44."""
    assert sum(affordable(budget, part) for part in parts) <= affordable(budget, sum(parts))


def test_a_budget_is_taken_as_it_is_written() -> None:
    assert affordable(0.7, 10) == 7
    assert affordable(0.09, 500) == 45
    assert affordable(1.0, 10**400) == 10**400


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0),
        ({"coupling": 0.5}, 0),
        ({"bias": "child"}, 3 * 2 * 10),
        ({"learn_coupling": True}, 2 * 10),
        ({"bias": "child", "learn_coupling": True}, 3 * 2 * 10 + 2 * 10),
    ],
)
def test_extra_numbers_of_a_gated_block(options: dict[str, object], expected: int) -> None:
    config = FPEConfig(alpha=4, **options)  # type: ignore[arg-type]
    assert extra_numbers(config, sources=2, biased=2, parents=10) == expected


def test_a_bias_per_child_costs_nothing_without_biases() -> None:
    assert extra_numbers(FPEConfig(bias="child"), sources=2, biased=0, parents=10) == 0


def test_the_example_of_the_documentation() -> None:
    """A head with 384 inputs and 45 outputs, alpha 4."""
    columns = TileColumns(sources=1, inputs=384, outputs=45, alpha=4, extra=0)
    assert columns.available == 384 + 45
    assert columns.inputs_beside(45, copies=4) == 384 - 3 * 45
    assert columns.inputs_beside(45, copies=1) == 384
    assert columns.keeps_fan_out


def test_a_square_gated_block_cannot_keep_its_fan_out() -> None:
    columns = TileColumns(sources=2, inputs=64, outputs=64, alpha=3, extra=4)
    assert columns.available == 2 * 64 + 64 - 4
    assert columns.inputs_beside(64, copies=3) == 0
    assert columns.inputs_beside(30, copies=3) == (188 - 90) // 2
    assert not columns.keeps_fan_out


@given(st.integers(1, 2), SIZES, SIZES, st.integers(2, 8), st.integers(0, 20), SIZES)
def test_inputs_beside_outputs_are_the_most_that_fit(
    sources: int, inputs: int, outputs: int, alpha: int, extra: int, kept: int
) -> None:
    columns = TileColumns(sources, inputs, outputs, alpha, extra)
    most = columns.inputs_beside(kept, alpha)

    def fits(count: int) -> bool:
        return sources * count + alpha * kept + extra <= sources * inputs + outputs

    assert most == max((count for count in range(inputs + 1) if fits(count)), default=0)
    assert columns.keeps_fan_out == (columns.inputs_beside(outputs, alpha) >= inputs / 2)
