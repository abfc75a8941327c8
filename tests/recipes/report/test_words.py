from __future__ import annotations

import dataclasses

import pytest

from fpe_hf.recipes.report.words import Verdict, verdict
from recipes.report.runs import make_results


def text(found: Verdict) -> str:
    return "\n".join(found.sentences)


def test_a_gain_beyond_two_standard_errors() -> None:
    found = verdict(make_results({"dense": [0.5, 0.5, 0.5], "fpe": [0.6, 0.7, 0.6]}))
    assert (found.outcome, found.headline) == ("better", "FPE helped.")
    assert found.sentences[0] == (
        "By accuracy, fpe reaches 63.33%, 13.33 points (standard error 3.33) above the 50.00% of "
        "dense, in the mean over 3 seeds. The difference exceeds two standard errors."
    )
    # One-sided t distribution with 2 degrees of freedom: 1/2 - 1/sqrt 6.
    assert found.sentences[1] == (
        "FPE is ahead with 3 of 3 seeds. Without any true difference, 3 seeds show a gain above "
        "two standard errors in 9% of runs."
    )
    assert found.sentences[2] == (
        "By loss (lower is better), fpe reaches 0.367, 0.133 (standard error 0.033) below the "
        "0.500 of dense: FPE helped."
    )


def test_a_loss() -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": [0.3, 0.38]}))
    assert (found.outcome, found.headline) == ("worse", "FPE did harm.")
    assert "16.00 points (standard error 4.00) below the 50.00% of dense" in found.sentences[0]


@pytest.mark.parametrize("fpe", [[0.4, 0.61], [0.6, 0.8]])
def test_a_difference_within_two_standard_errors(fpe: list[float]) -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": fpe}))
    assert (found.outcome, found.headline) == ("unclear", "FPE made no clear difference.")
    assert "does not exceed two standard errors" in found.sentences[0]


def test_no_difference_at_all() -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": [0.5, 0.5]}))
    assert found.outcome == "unclear"
    assert found.sentences[0].startswith("By accuracy, fpe reaches 50.00%, dense 50.00%, in")


def test_where_lower_is_better() -> None:
    found = verdict(make_results({"dense": [9.0, 8.0], "fpe": [7.0, 6.5]}, "perplexity"))
    assert found.outcome == "better"
    assert found.sentences[0].startswith(
        "By perplexity (lower is better), fpe reaches 6.750, 1.750 (standard error 0.250) below"
    )


def test_one_seed_says_nothing_about_spread() -> None:
    arms = {"dense": [0.5], "fpe": [0.6], "overlap": [0.4], "wide-dense": [0.7]}
    found = verdict(make_results(arms))
    assert found.headline == "One seed: nothing can be said about spread."
    assert "it may be the other way round" in found.sentences[0]
    assert "standard error" not in text(found)
    assert "one seed does not show" in text(found)


def test_values_that_are_not_finite() -> None:
    results = make_results({"dense": [2.0, 2.0], "fpe": [1.0, float("inf")]}, "perplexity")
    found = verdict(results)
    assert (found.outcome, found.headline) == ("broken", "Nothing can be compared.")
    assert "not all values are finite" in found.sentences[0]


@pytest.mark.parametrize(
    ("overlap", "words"),
    [
        ([0.5, 0.58], "it helps that children of a neuron share no inputs"),
        ([0.9, 0.8], "disjoint inputs did worse than shared ones"),
        ([0.5, 0.9], "nothing shows that it matters"),
    ],
)
def test_overlap_control(overlap: list[float], words: str) -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": [0.7, 0.7], "overlap": overlap}))
    assert words in text(found)


@pytest.mark.parametrize(
    ("arm", "values", "words"),
    [
        ("fpe-random", [0.5, 0.6], "the split as configured does better"),
        ("fpe-random", [0.9, 0.8], "the paper's did better"),
        ("narrow-dense", [0.5, 0.6], "more and sparser neurons do better"),
        ("narrow-dense", [0.5, 0.9], "nothing shows that more and sparser neurons do better"),
        ("dense-longer", [0.5, 0.6], "FPE gains more than longer training does"),
        ("dense-longer", [0.9, 0.9], "longer training gains more, and costs no more"),
        ("dense-longer", [0.5, 0.9], "nothing shows that FPE gains more than longer training"),
        ("dense-longer", [0.5], "one seed does not show which gains more"),
    ],
)
def test_other_controls(arm: str, values: list[float], words: str) -> None:
    others = {"dense": [0.5, 0.5], "fpe": [0.7, 0.7]}
    arms = {name: value[: len(values)] for name, value in others.items()} | {arm: values}
    assert words in text(verdict(make_results(arms)))


@pytest.mark.parametrize(
    ("fpe", "wide", "words"),
    [
        ([0.6, 0.6], [0.9, 0.9], "FPE has 25% of this gain"),
        ([0.4, 0.4], [0.9, 0.9], "FPE has none of this gain"),
        ([0.4, 0.7], [0.9, 0.9], "FPE has no clear share of this gain"),
        ([0.6, 0.6], [0.4, 0.7], "width alone brings no clear gain here"),
        ([0.6, 0.6], [0.4, 0.4], "width alone brings no clear gain here"),
        ([0.6, 0.6], [0.9, float("nan")], "nothing can be compared"),
    ],
)
def test_ceiling(fpe: list[float], wide: list[float], words: str) -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": fpe, "wide-dense": wide}))
    assert "Ceiling, with 2.00 times the non-zeros: wide-dense" in text(found)
    assert words in text(found)


def test_arms_that_were_not_run_are_not_spoken_of() -> None:
    found = text(verdict(make_results({"dense": [0.5, 0.5], "fpe": [0.6, 0.6]})))
    assert "verlap" not in found
    assert "eiling" not in found


def test_longer_training_is_no_lack_of_fairness() -> None:
    results = make_results({"dense": [0.5], "fpe": [0.6], "dense-longer": [0.6]})
    results.runs[2] = dataclasses.replace(results.runs[2], steps=1080)
    assert verdict(results).sentences[-1] == (
        "Every arm but dense-longer (1,080 steps) trained for 40 steps. FPE holds 1,610 non-zeros, "
        "dense 1,610."
    )


def test_steps_and_budget() -> None:
    results = make_results({"dense": [0.5], "fpe": [0.6]})
    assert verdict(results).sentences[-1] == (
        "Every arm trained for 40 steps. FPE holds 1,610 non-zeros, dense 1,610."
    )
    results.runs[0] = dataclasses.replace(results.runs[0], steps=39, nonzeros=0)
    assert verdict(results).sentences[-1] == (
        "The arms did not train for equally many steps: compare with care."
    )
