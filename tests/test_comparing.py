from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.comparing import (
    Difference,
    binomial_half_width,
    compare,
    half_width,
    paired_half_width,
)

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=5)
WIDTHS = st.none() | st.floats(0, 0.2)
OPPOSITE = {"better": "worse", "worse": "better"}


def gains(mean: float, error: float, seeds: int) -> tuple[float, ...]:
    """Gains of a mean and a standard error."""
    if seeds == 2:
        return mean - error, mean + error
    return mean - error * 3**0.5, mean, mean + error * 3**0.5


@pytest.mark.parametrize(
    ("own", "word"),
    [
        (gains(0.0022, 0.0013, 3), "no clear difference"),
        (gains(0.003, 0.003, 2), "no clear difference"),
        (gains(0.1, 0.04, 2), "no clear difference"),  # t of 1 degree is 12.7
        ((0.0687, 0.0690, 0.0684), "better"),
        ((-0.05, -0.06, -0.04), "worse"),
        ((1e-7, -1e-7), "identical"),
        ((1e-7,), "identical"),
        ((0.0, 0.0), "identical"),
        ((0.0008, 0.0008, 0.0008), "no clear difference"),  # clear, but below 0.1 points
        ((0.3,), "no clear difference"),  # one seed, and no word about the evaluation set
    ],
)
def test_words(own: tuple[float, ...], word: str) -> None:
    assert Difference(own).word == word


def test_losses_count_relative_to_their_size() -> None:
    theirs = [4000.0, 4000.0]
    assert compare([3999.0, 3999.0], theirs, lower_is_better=True, scale=None).word == (
        "no clear difference"
    )
    assert compare([3990.0, 3990.0], theirs, lower_is_better=True, scale=None).word == "better"
    assert compare([4000.001] * 2, theirs, lower_is_better=True, scale=None).word == "identical"


def test_one_seed_goes_by_the_evaluation_set() -> None:
    assert Difference((0.05,), evaluation=0.02).word == "better"
    assert Difference((0.05,), evaluation=0.06).word == "no clear difference"
    assert Difference((0.05,), evaluation=0.02).interval == pytest.approx((0.03, 0.07))


def test_both_uncertainties_add_in_squares() -> None:
    own = Difference(gains(0.1, 0.03 / 12.7062, 2), evaluation=0.04)
    assert own.half_width == pytest.approx(0.05, abs=1e-6)


@given(SHARES, st.data(), WIDTHS)
def test_the_other_way_round_is_the_opposite(
    ours: list[float], data: st.DataObject, evaluation: float | None
) -> None:
    theirs = data.draw(st.lists(st.floats(0, 1), min_size=len(ours), max_size=len(ours)))
    there = compare(ours, theirs, evaluation=evaluation)
    back = compare(theirs, ours, evaluation=evaluation)
    assert there.gain == -back.gain
    assert there.word == OPPOSITE.get(str(back.word), back.word)
    assert there == compare(theirs, ours, lower_is_better=True, evaluation=evaluation)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=5))
def test_a_constant_changes_nothing(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = zip(*pairs, strict=True)  # in 1/128, so that sums are exact
    shifted = compare([(v + 64) / 128 for v in ours], [(v + 64) / 128 for v in theirs])
    assert shifted == compare([v / 128 for v in ours], [v / 128 for v in theirs])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4), WIDTHS)
def test_the_order_of_seeds_does_not_matter(own: list[float], evaluation: float | None) -> None:
    found = {
        (d.gain, d.half_width, d.word)
        for order in itertools.permutations(own)
        for d in [Difference(order, evaluation=evaluation)]
    }
    assert len(found) == 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4), st.floats(0, 0.2), st.floats(0, 0.2))
def test_more_uncertainty_never_decides(own: list[float], less: float, more: float) -> None:
    less, more = sorted((less, more))
    if Difference(tuple(own), evaluation=less).word == "no clear difference":
        assert Difference(tuple(own), evaluation=more).word == "no clear difference"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_not_compared(value: float) -> None:
    assert compare([1.0, value], [1.0, 1.0]).word is None


def test_interval_of_students_t() -> None:
    assert half_width([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.0542, abs=1e-3)
    assert half_width([1.0]) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=30, max_size=200))
def test_the_bound_is_above_what_pairs_imply(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array(pairs).T
    bound = binomial_half_width(ours.mean(), theirs.mean(), len(pairs))
    exact = paired_half_width(ours[None], theirs[None])
    assert exact <= bound * (len(pairs) / (len(pairs) - 1)) ** 0.5 + 1e-9
