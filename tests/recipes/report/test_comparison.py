from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.recipes.report.comparison import compare, measured
from recipes.report.runs import make_results

SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@given(SHARES, SHARES)
def test_the_other_way_round_is_the_opposite(fpe: list[float], dense: list[float]) -> None:
    results = make_results({"dense": dense, "fpe": fpe})
    there = compare(results, "accuracy", "fpe", "dense")
    back = compare(results, "accuracy", "dense", "fpe")
    assert there.gains == tuple(-gain for gain in back.gains)
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert there.outcome == opposite[back.outcome]


@given(SHARES, SHARES)
def test_a_lower_loss_is_better(fpe: list[float], dense: list[float]) -> None:
    by_loss = compare(make_results({"dense": dense, "fpe": fpe}, "loss"), "loss", "fpe", "dense")
    other = compare(make_results({"dense": dense, "fpe": fpe}), "accuracy", "dense", "fpe")
    assert by_loss.gains == other.gains


@pytest.mark.parametrize(
    ("fpe", "outcome", "error"),
    [
        ([0.6, 0.8], "unclear", 0.1),
        ([0.7, 0.8], "better", 0.05),
        ([0.3, 0.2], "worse", 0.05),
        ([0.6, 0.4], "unclear", 0.1),
        ([0.5, 0.5], "unclear", 0.0),
        ([0.6, 0.6], "better", 0.0),
    ],
)
def test_outcomes(fpe: list[float], outcome: str, error: float) -> None:
    found = compare(make_results({"dense": [0.5, 0.5], "fpe": fpe}), "accuracy", "fpe", "dense")
    assert found.outcome == outcome
    assert found.error == pytest.approx(error, abs=1e-12)
    assert found.wins == sum(value > 0.5 for value in fpe)


def test_one_seed_has_no_error() -> None:
    found = compare(make_results({"dense": [0.5], "fpe": [0.9]}), "accuracy", "fpe", "dense")
    assert (found.outcome, found.error) == ("single", None)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_not_compared(value: float) -> None:
    results = make_results({"dense": [2.0, 2.0], "fpe": [1.0, value]}, "perplexity")
    assert compare(results, "perplexity", "fpe", "dense").outcome == "broken"


def test_arms_are_paired_by_seed() -> None:
    results = make_results({"dense": [0.1, 0.5], "fpe": [0.2, 0.7]})
    results.runs.reverse()
    found = compare(results, "accuracy", "fpe", "dense")
    assert found.gains == pytest.approx((0.1, 0.2))
    del results.runs[0]  # seed 1 of fpe
    assert compare(results, "accuracy", "fpe", "dense").gains == pytest.approx((0.1,))


def test_the_loss_is_always_there_once() -> None:
    assert measured(make_results({"dense": [1.0]})) == ("accuracy", "loss")
    assert measured(make_results({"dense": [1.0]}, "loss")) == ("loss",)
