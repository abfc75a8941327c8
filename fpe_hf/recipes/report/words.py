"""What came out, in words: where FPE helped and where it did not."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from ..evaluation import LOWER_IS_BETTER
from ..results import Results, show
from .comparison import CLEAR, Comparison, Outcome, compare, measured
from .units import amount, is_share

_HEADLINES: dict[Outcome, str] = {
    "better": "FPE helped.",
    "worse": "FPE did harm.",
    "unclear": "FPE made no clear difference.",
    "single": "One seed: nothing can be said about spread.",
    "broken": "Nothing can be compared.",
}

_IN_SHORT: dict[Outcome, str] = {
    "better": ": FPE helped",
    "worse": ": FPE did harm",
    "unclear": ": no clear difference",
    "single": "",
    "broken": ": nothing can be compared",
}


_CONTROLS: dict[str, tuple[str, dict[Outcome, str]]] = {
    "fpe-random": (
        "The paper's random split, at the same budget",
        {
            "better": "the split as configured does better",
            "worse": "the paper's did better",
            "unclear": "nothing shows that it matters how the inputs are split",
            "single": "one seed does not show which split is better",
            "broken": "nothing can be compared",
        },
    ),
    "overlap": (
        "Overlap control, at the same budget",
        {
            "better": "it helps that children of a neuron share no inputs",
            "worse": "disjoint inputs did worse than shared ones",
            "unclear": "nothing shows that it matters whether children share inputs",
            "single": "one seed does not show whether it matters that children share no inputs",
            "broken": "nothing can be compared",
        },
    ),
    "narrow-dense": (
        "Fewer neurons, dense, at the same budget",
        {
            "better": "more and sparser neurons do better",
            "worse": "fewer neurons did better",
            "unclear": "nothing shows that more and sparser neurons do better",
            "single": "one seed does not show which is better",
            "broken": "nothing can be compared",
        },
    ),
    "dense-longer": (
        "Dense at the training FLOPs of FPE, in more steps",
        {
            "better": "FPE gains more than longer training does",
            "worse": "longer training gains more, and costs no more",
            "unclear": "nothing shows that FPE gains more than longer training does",
            "single": "one seed does not show which gains more",
            "broken": "nothing can be compared",
        },
    ),
}
"""Arm -> what it is, and what it means if FPE does better or worse."""


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        outcome: Of FPE against dense, by the first metric.
        headline: It in a few words.
        sentences: It at length, a paragraph each.
    """

    outcome: Outcome
    headline: str
    sentences: tuple[str, ...]


def verdict(results: Results) -> Verdict:
    """Sums up a run."""
    main = results.metrics[0]
    against_dense = compare(results, main, "fpe", "dense")
    sentences = [_against_dense(against_dense), *_bar(against_dense)]
    for metric in measured(results)[1:]:
        other = compare(results, metric, "fpe", "dense")
        sentences.append(f"By {_named(metric)}, {_gap(other)}{_IN_SHORT[other.outcome]}.")
    for arm, (lead, meanings) in _CONTROLS.items():
        if arm in results.arms:
            pair = compare(results, main, "fpe", arm)
            sentences.append(f"{lead}: {_gap(pair)}; {meanings[pair.outcome]}.")
    if "wide-dense" in results.arms:
        wide = compare(results, main, "wide-dense", "dense")
        sentences.append(_ceiling(results, against_dense, wide))
    sentences.append(_fairness(results))
    outcome = against_dense.outcome
    return Verdict(outcome, _HEADLINES[outcome], tuple(sentences))


def _against_dense(fpe: Comparison) -> str:
    seeds = len(fpe.gains)
    found = f"By {_named(fpe.metric)}, {_gap(fpe)}"
    if fpe.outcome == "broken":
        return f"{found}: not all values are finite."
    if fpe.outcome == "single":
        return (
            f"{found}. With another seed it may be the other way round: name more in compare.seeds."
        )
    verb = "does not exceed" if fpe.outcome == "unclear" else "exceeds"
    return f"{found}, in the mean over {seeds} seeds. The difference {verb} two standard errors."


def _bar(fpe: Comparison) -> list[str]:
    """In how many seeds FPE is ahead, and how often chance alone passes the bar."""
    seeds = len(fpe.gains)
    if fpe.outcome in ("single", "broken"):
        return []
    chance = stats.t.sf(CLEAR, seeds - 1)
    return [
        f"FPE is ahead with {fpe.wins} of {seeds} seeds. Without any true difference, {seeds} "
        f"seeds show a gain above two standard errors in {chance:.0%} of runs."
    ]


def _ceiling(results: Results, fpe: Comparison, wide: Comparison) -> str:
    wide_size, dense_size = (results.of_arm(arm)[0].nonzeros for arm in ("wide-dense", "dense"))
    times = f", with {wide_size / dense_size:.2f} times the non-zeros" if dense_size else ""
    return f"Ceiling{times}: {_gap(wide)}; {_share_of_ceiling(fpe, wide)}."


def _share_of_ceiling(fpe: Comparison, wide: Comparison) -> str:
    if "broken" in (fpe.outcome, wide.outcome):
        return "nothing can be compared"
    if wide.gain <= 0 or wide.outcome == "unclear":
        return "width alone brings no clear gain here, so there is little for FPE to gain"
    if fpe.gain <= 0:
        return "FPE has none of this gain"
    if fpe.outcome == "unclear":
        return "FPE has no clear share of this gain"
    return f"FPE has {fpe.gain / wide.gain:.0%} of this gain"


def _fairness(results: Results) -> str:
    """Whether the arms had as many steps and non-zeros."""
    longer = results.of_arm("dense-longer")
    arms = f"Every arm but dense-longer ({longer[0].steps:,} steps)" if longer else "Every arm"
    steps = sorted({run.steps for run in results.runs if run.arm != "dense-longer"})
    sentences = [
        f"{arms} trained for {steps[0]:,} steps."
        if len(steps) == 1
        else "The arms did not train for equally many steps: compare with care."
    ]
    fpe, dense = (results.of_arm(arm)[0].nonzeros for arm in ("fpe", "dense"))
    if fpe and dense:
        sentences.append(f"FPE holds {fpe:,} non-zeros, dense {dense:,}.")
    return " ".join(sentences)


def _gap(pair: Comparison) -> str:
    """`fpe reaches 88.61%, 1.23 points (standard error 0.40) above the 87.38% of dense`."""
    value, other = (show(pair.metric, number) for number in (pair.value, pair.other_value))
    if pair.outcome == "broken" or pair.gain == 0:
        return f"{pair.arm} reaches {value}, {pair.other} {other}"
    above = (pair.gain > 0) != (pair.metric in LOWER_IS_BETTER)
    error = "" if pair.error is None else f" (standard error {_bare(pair.metric, pair.error)})"
    return (
        f"{pair.arm} reaches {value}, {amount(pair.metric, pair.gain)}{error} "
        f"{'above' if above else 'below'} the {other} of {pair.other}"
    )


def _bare(metric: str, number: float) -> str:
    return f"{100 * number:.2f}" if is_share(metric) else f"{number:.3f}"


def _named(metric: str) -> str:
    return f"{metric} (lower is better)" if metric in LOWER_IS_BETTER else metric
