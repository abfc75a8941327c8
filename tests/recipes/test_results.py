from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.comparing import paired_half_width
from fpe_hf.hub.results import read_results
from fpe_hf.recipes.evaluation import Outcomes
from fpe_hf.recipes.results import Results
from recipes.report.runs import make_results

SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@given(SHARES, SHARES)
def test_a_lower_loss_is_better(fpe: list[float], dense: list[float]) -> None:
    by_loss = make_results({"dense": dense, "fpe": fpe}, "loss").compare("fpe")
    other = make_results({"dense": dense, "fpe": fpe}).compare("dense", "fpe")
    assert by_loss.difference.gains == other.difference.gains


def test_arms_are_paired_by_seed() -> None:
    results = make_results({"dense": [0.1, 0.5], "fpe": [0.2, 0.7]})
    results.runs.reverse()
    assert results.compare("fpe").difference.gains == pytest.approx((0.1, 0.2))
    del results.runs[0]  # seed 1 of fpe
    found = results.compare("fpe")
    assert found.difference.gains == pytest.approx((0.1,))
    assert (found.seeds, found.wins) == (1, 1)


def test_the_loss_is_always_there_once() -> None:
    assert make_results({"dense": [1.0]}).measured == ("accuracy", "loss")
    assert make_results({"dense": [1.0]}, "loss").measured == ("loss",)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_what_became_of_every_example(pairs: list[tuple[int, int]]) -> None:
    first, labels = np.array(pairs).T
    found = Outcomes.of(np.stack([first, 3 - first], 1), labels)
    assert found is not None
    np.testing.assert_array_equal(found.right(), first == labels)
    assert sum(right for right, _ in found.by_class) == (first == labels).sum()
    assert [total for _, total in found.by_class] == np.bincount(labels).tolist()


def test_tokens_are_no_examples() -> None:
    assert Outcomes.of(np.zeros((2, 3, 5)), np.zeros((2, 3))) is None


def with_outcomes() -> Results:
    results = make_results({"dense": [0.5, 0.5], "fpe": [0.75, 1.0]})
    right = {"dense": [[1, 1, 0, 0], [1, 0, 1, 0]], "fpe": [[1, 1, 1, 0], [1, 1, 1, 1]]}
    for place, run in enumerate(results.runs):
        own = np.array(right[run.arm][run.seed])
        outcomes = Outcomes.of(np.stack([own], 1), np.ones(4, int))
        results.runs[place] = dataclasses.replace(run, outcomes=outcomes)
    return results


def test_outcomes_tell_more_than_a_bound() -> None:
    found = with_outcomes().compare("fpe")
    assert found.evaluation == "examples"
    expected = paired_half_width([[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 0, 1, 0]])
    assert found.difference.evaluation == pytest.approx(expected)
    assert with_outcomes().compare("fpe", metric="loss").evaluation == "unknown"
    assert make_results({"dense": [0.5], "fpe": [0.6]}).compare("fpe").evaluation == "bound"


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = with_outcomes()
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    dense, fpe = read_results(tmp_path)
    assert dense.verdict is None
    assert fpe.verdict == results.compare("fpe").word


def test_metrics_that_are_no_shares_have_no_bound() -> None:
    results = make_results({"dense": [-0.5, -0.4], "fpe": [0.6, 0.7]}, "matthews_correlation")
    assert results.compare("fpe").evaluation == "unknown"
