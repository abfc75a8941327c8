"""What came out, in words: where FPE helped and where it did not."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from ..evaluation import LOWER_IS_BETTER
from ..results import Results, show
from .comparison import Comparison, Outcome, compare, measured
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
    sentences = [_against_dense(against_dense), *_low_bar(against_dense)]
    for metric in measured(results)[1:]:
        other = compare(results, metric, "fpe", "dense")
        sentences.append(f"By {_named(metric)}, {_gap(other)}{_IN_SHORT[other.outcome]}.")
    if "overlap" in results.arms:
        sentences.append(_against_overlap(compare(results, main, "fpe", "overlap")))
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
    return f"{found}, in the mean over {seeds} seeds. The difference {verb} one standard error."


def _low_bar(fpe: Comparison) -> list[str]:
    """In how many seeds FPE is ahead, and how little one standard error says."""
    seeds = len(fpe.gains)
    if fpe.outcome in ("single", "broken"):
        return []
    chance = stats.t.sf(1, seeds - 1)
    return [
        f"FPE is ahead with {fpe.wins} of {seeds} seeds. One standard error is a low bar: without "
        f"any true difference, {seeds} seeds show a gain above it in {chance:.0%} of runs."
    ]


def _against_overlap(fpe: Comparison) -> str:
    means: dict[Outcome, str] = {
        "better": "it helps that children of a neuron share no inputs",
        "worse": "disjoint inputs did worse than shared ones",
        "unclear": "nothing shows that it matters whether children share inputs",
        "single": "one seed does not show whether it matters that children share no inputs",
        "broken": "nothing can be compared",
    }
    return f"Overlap control, at the same budget: {_gap(fpe)}; {means[fpe.outcome]}."


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
    steps = sorted({run.steps for run in results.runs})
    sentences = [
        f"Every arm trained for {steps[0]:,} steps."
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
