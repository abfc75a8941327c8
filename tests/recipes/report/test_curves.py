from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fpe_hf.recipes.report.curves import curve, gain_curve, split_step
from recipes.report.runs import make_results


def test_mean_span_and_interval_over_seeds() -> None:
    found = curve(make_results({"dense": [0.4, 0.8]}), "dense", "accuracy")
    assert found is not None
    assert found.steps == (10, 20, 30, 40)
    np.testing.assert_allclose(found.mean, [0.15, 0.3, 0.45, 0.6])
    np.testing.assert_allclose(found.span[0], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(found.span[1], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(found.half_width, 12.7062 * np.array([0.05, 0.1, 0.15, 0.2]), 1e-5)


def test_one_seed_has_no_width() -> None:
    found = curve(make_results({"dense": [0.4]}), "dense", "accuracy")
    assert found is not None
    np.testing.assert_array_equal(found.half_width, np.zeros(4))


def test_only_steps_that_all_seeds_have() -> None:
    results = make_results({"dense": [0.4, 0.8], "fpe": [0.5, 0.9]})
    del results.of_arm("dense")[1].curve[0]
    for found in (
        curve(results, "dense", "accuracy"),
        gain_curve(results, "fpe", "accuracy"),
    ):
        assert found is not None
        assert found.steps == (20, 30, 40)


def test_gains_are_positive_where_the_arm_is_better() -> None:
    results = make_results({"dense": [0.4], "fpe": [0.8]})
    by_accuracy = gain_curve(results, "fpe", "accuracy")
    by_loss = gain_curve(results, "fpe", "loss")
    assert by_accuracy is not None
    assert by_loss is not None
    np.testing.assert_allclose(by_accuracy.mean, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(by_loss.mean, [0.1, 0.2, 0.3, 0.4])


def test_no_evaluation_no_curve() -> None:
    results = make_results({"dense": [0.4], "fpe": [0.5]})
    results.of_arm("fpe")[0].curve.clear()
    assert curve(results, "fpe", "accuracy") is None
    assert gain_curve(results, "fpe", "accuracy") is None
    assert curve(results, "dense", "f1") is None


@pytest.mark.parametrize(
    ("recipe", "step"),
    [
        ({}, 10),
        ({"widen": {"at": None}}, None),
        ({"widen": {"alpha": 2}}, None),
        ({"widen": {"at": {"step": None, "epoch": 1.5}}}, 15),
        ({"widen": {"at": {"step": None, "epoch": 1.5}}, "train": {"max_steps": 40}}, None),
        ({"widen": {"at": {"step": None, "epoch": 1.5}}, "train": {}}, 20),
        ({"widen": {"at": {"step": 7, "epoch": None}}, "train": {"max_steps": 40}}, 7),
    ],
)
def test_where_the_split_is(recipe: dict[str, Any], step: int | None) -> None:
    assert split_step(make_results({"dense": [0.4], "fpe": [0.5]}, recipe=recipe)) == step
