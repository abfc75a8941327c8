from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from fpe_hf.recipes.report.words import Verdict, verdict
from fpe_hf.recipes.results import Results
from recipes.report.runs import make_results


def large(results: Results) -> Results:
    """The same with so many evaluation examples that they leave nothing open."""
    return dataclasses.replace(results, examples=(100, 10**9))


def text(found: Verdict) -> str:
    return "\n".join(found.sentences)


def test_a_gain() -> None:
    found = verdict(large(make_results({"dense": [0.5, 0.5, 0.5], "fpe": [0.6, 0.61, 0.62]})))
    assert found.word == "better"
    # 4.303 (t of 2 degrees) x 1 point / sqrt 3
    assert found.headline == (
        "FPE is better than dense by 11.00 points of accuracy (95 % interval +8.52 to +13.48, "
        "3 seeds)."
    )
    assert found.sentences[:3] == (
        "By accuracy, fpe 61.00%, dense 50.00%: +11.00 points (95 % interval +8.52 to +13.48, "
        "3 seeds).",
        "Positive is better. The interval holds ±2.48 points for other seeds (Student's t) and "
        "±0.01 points for other evaluation examples (1,000,000,000 here; a bound, as the two "
        "values alone allow). FPE is ahead with 3 of 3 seeds.",
        "By loss (lower is better), fpe 0.390, dense 0.500: +0.110 (95 % interval +0.085 to "
        "+0.135, 3 seeds): better.",
    )


def test_a_loss() -> None:
    found = verdict(large(make_results({"dense": [0.5] * 3, "fpe": [0.3, 0.31, 0.3]})))
    assert found.word == "worse"
    assert found.headline.startswith("FPE is worse than dense by 19.67 points of accuracy (95 %")


def test_the_demo_shows_no_clear_difference() -> None:
    """+0.22 points with a standard error of 0.13, over 3 seeds."""
    gains = (0.0022 - 0.0013 * 3**0.5, 0.0022, 0.0022 + 0.0013 * 3**0.5)
    fpe = [0.95 + gain for gain in gains]
    found = verdict(large(make_results({"dense": [0.95] * 3, "fpe": fpe})))
    assert found.headline == (
        "No clear difference between FPE and dense: +0.22 points of accuracy (95 % interval -0.34 "
        "to +0.78, 3 seeds)."
    )


def test_a_small_evaluation_set_decides_nothing() -> None:
    arms = {"dense": [0.5, 0.5, 0.5], "fpe": [0.6, 0.61, 0.62]}
    found = verdict(make_results(arms))  # 20 examples
    assert found.word == "no clear difference"


@pytest.mark.parametrize("fpe", [[0.5, 0.5], [0.5 + 1e-7, 0.5 - 1e-7]])
def test_identical_models(fpe: list[float]) -> None:
    found = verdict(make_results({"dense": [0.5, 0.5], "fpe": fpe}))
    assert found.headline == "FPE and dense are identical by accuracy (2 seeds)."
    assert "better" not in text(found).replace("lower is better", "")


def test_where_lower_is_better() -> None:
    found = verdict(make_results({"dense": [9.0, 8.0], "fpe": [7.0, 6.0]}, "perplexity"))
    assert found.headline == (
        "FPE is better than dense by 2.000 in perplexity (95 % interval +2.000 to +2.000, 2 seeds)."
    )
    assert "What other evaluation examples would change is not known." in found.sentences[1]


def test_one_seed_goes_by_the_evaluation_set() -> None:
    found = verdict(large(make_results({"dense": [0.5], "fpe": [0.6]})))
    assert found.headline == (
        "FPE is better than dense by 10.00 points of accuracy (95 % interval +9.99 to +10.01, "
        "1 seed)."
    )
    assert "Seeds were not varied" in found.sentences[1]
    by_loss = verdict(make_results({"dense": [0.5], "fpe": [0.4]}, "loss"))
    assert by_loss.word == "no clear difference"
    assert "(interval unknown, 1 seed)" in by_loss.headline


def test_values_that_are_not_finite() -> None:
    results = make_results({"dense": [2.0, 2.0], "fpe": [1.0, float("inf")]}, "perplexity")
    found = verdict(results)
    assert found.word is None
    assert found.headline == "Nothing can be compared, as not all values are finite."


@pytest.mark.parametrize(
    ("arm", "values", "words"),
    [
        ("overlap", [0.5, 0.501], "disjoint inputs are better than shared ones"),
        ("overlap", [0.9, 0.901], "disjoint inputs are worse than shared ones"),
        ("overlap", [0.5, 0.9], "nothing shows that it matters"),
        ("overlap", [0.7, 0.7], "nothing shows that it matters"),
        ("fpe-random", [0.5, 0.501], "the split as configured is better"),
        ("fpe-random", [0.9, 0.901], "the paper's is better"),
        ("narrow-dense", [0.5, 0.501], "more and sparser neurons are better"),
        ("narrow-dense", [0.5, 0.9], "nothing shows that more and sparser neurons are better"),
        ("dense-longer", [0.5, 0.501], "FPE is better than longer training"),
        ("dense-longer", [0.9, 0.9], "FPE is worse than longer training, which costs no more"),
        ("dense-longer", [0.5, 0.9], "nothing shows that FPE is better than longer training"),
    ],
)
def test_controls(arm: str, values: list[float], words: str) -> None:
    arms = {"dense": [0.5, 0.5], "fpe": [0.7, 0.7], arm: values}
    assert words in text(verdict(large(make_results(arms))))


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
def test_ceiling(fpe: Sequence[float], wide: Sequence[float], words: str) -> None:
    found = verdict(large(make_results({"dense": [0.5, 0.5], "fpe": fpe, "wide-dense": wide})))
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
