"""What came out, in words; which, `fpe_hf.comparing` decides."""

from __future__ import annotations

from dataclasses import dataclass

from ...comparing import Word, half_width
from ..evaluation import LOWER_IS_BETTER
from ..results import Comparison, Results, show
from .units import amount, interval, signed

_NOT_FINITE = "nothing can be compared, as not all values are finite"

_CONTROLS: dict[str, tuple[str, str, str, str]] = {
    "fpe-random": (
        "The paper's random split, at the same budget",
        "the split as configured is better",
        "the paper's is better",
        "nothing shows that it matters how the inputs are split",
    ),
    "overlap": (
        "Overlap control, at the same budget",
        "disjoint inputs are better than shared ones",
        "disjoint inputs are worse than shared ones",
        "nothing shows that it matters whether children share inputs",
    ),
    "narrow-dense": (
        "Fewer neurons, dense, at the same budget",
        "more and sparser neurons are better",
        "more and sparser neurons are worse",
        "nothing shows that more and sparser neurons are better",
    ),
    "dense-longer": (
        "Dense at the training FLOPs of FPE, in more steps",
        "FPE is better than longer training",
        "FPE is worse than longer training, which costs no more",
        "nothing shows that FPE is better than longer training",
    ),
}
"""Arm -> what it is, and what it means if FPE is better, worse, or neither."""


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        word: Of FPE against dense, by the first metric; `None` if a value is not finite.
        headline: It in a few words.
        sentences: It at length, a paragraph each.
    """

    word: Word | None
    headline: str
    sentences: tuple[str, ...]


def verdict(results: Results) -> Verdict:
    """Sums up a run."""
    fpe = results.compare("fpe")
    sentences = [f"By {_named(fpe.metric)}, {_gap(fpe)}.", _basis(fpe, results.examples[1])]
    for metric in results.measured[1:]:
        other = results.compare("fpe", metric=metric)
        sentences.append(f"By {_named(metric)}, {_gap(other)}: {other.word or _NOT_FINITE}.")
    for arm in _CONTROLS:
        if arm in results.arms:
            sentences.append(_control(results.compare("fpe", arm)))
    if "wide-dense" in results.arms:
        sentences.append(_ceiling(results, fpe, results.compare("wide-dense")))
    sentences.append(_fairness(results))
    return Verdict(fpe.word, headline(fpe), tuple(filter(None, sentences)))


def headline(pair: Comparison) -> str:
    """The main result: `FPE is better than dense by 1.23 points of accuracy (...).`."""
    arm, other = (pair.arm.replace("fpe", "FPE"), pair.other)
    by = f"{amount(pair.metric, pair.gain)}{_of(pair.metric)}"
    if pair.word is None:
        return f"{_NOT_FINITE[0].upper()}{_NOT_FINITE[1:]}."
    if pair.word == "identical":
        return f"{arm} and {other} are identical by {pair.metric} ({_seeds(pair)})."
    if pair.word == "no clear difference":
        gain = f"{signed(pair.metric, pair.gain)}{_unit(pair.metric)}{_of(pair.metric)}"
        return f"No clear difference between {arm} and {other}: {gain} {_uncertainty(pair)}."
    return f"{arm} is {pair.word} than {other} by {by} {_uncertainty(pair)}."


def _gap(pair: Comparison) -> str:
    """Two values: `fpe 88.61%, dense 87.38%: +1.23 points (95 % interval ..., 5 seeds)`."""
    value, other = (show(pair.metric, number) for number in (pair.value, pair.other_value))
    found = f"{pair.arm} {value}, {pair.other} {other}"
    if pair.word is None:
        return found
    gain = signed(pair.metric, pair.gain)
    return f"{found}: {gain}{_unit(pair.metric)} {_uncertainty(pair)}"


def _uncertainty(pair: Comparison) -> str:
    found = pair.difference.interval
    if found is None:
        return f"(interval unknown, {_seeds(pair)})"
    return f"(95 % interval {interval(pair.metric, found)}, {_seeds(pair)})"


def _basis(pair: Comparison, examples: int) -> str:
    """What the interval holds, and what it does not."""
    if pair.word in (None, "identical"):
        return ""
    seeds = half_width(pair.difference.gains)
    parts = []
    if seeds is not None:
        parts.append(f"±{amount(pair.metric, seeds)} for other seeds (Student's t)")
    if pair.difference.evaluation is not None:
        by = (
            "from what became of each of them"
            if pair.evaluation == "examples"
            else "a bound, as the two values alone allow"
        )
        parts.append(
            f"±{amount(pair.metric, pair.difference.evaluation)} for other evaluation examples "
            f"({examples:,} here; {by})"
        )
    told = f"Positive is better. The interval holds {' and '.join(parts)}." if parts else ""
    if pair.difference.evaluation is None:
        told += " What other evaluation examples would change is not known."
    if seeds is None:
        return (
            f"{told} Seeds were not varied: another one may turn it round. Name more in "
            "compare.seeds."
        ).strip()
    return f"{told.strip()} FPE is ahead with {pair.wins} of {pair.seeds} seeds."


def _control(pair: Comparison) -> str:
    lead, better, worse, neither = _CONTROLS[pair.other]
    meaning = {None: _NOT_FINITE, "better": better, "worse": worse}.get(pair.word, neither)
    return f"{lead}: {_gap(pair)}; {meaning}."


def _ceiling(results: Results, fpe: Comparison, wide: Comparison) -> str:
    wide_size, dense_size = (results.of_arm(arm)[0].nonzeros for arm in ("wide-dense", "dense"))
    times = f", with {wide_size / dense_size:.2f} times the non-zeros" if dense_size else ""
    return f"Ceiling{times}: {_gap(wide)}; {_share_of_ceiling(fpe, wide)}."


def _share_of_ceiling(fpe: Comparison, wide: Comparison) -> str:
    if fpe.word is None or wide.word is None:
        return _NOT_FINITE
    if wide.word != "better":
        return "width alone brings no clear gain here, so nothing can be said of a share"
    if fpe.word == "worse":
        return "FPE has none of this gain"
    if fpe.word != "better":
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


def _seeds(pair: Comparison) -> str:
    return "1 seed" if pair.seeds == 1 else f"{pair.seeds} seeds"


def _unit(metric: str) -> str:
    return "" if metric in LOWER_IS_BETTER else " points"


def _of(metric: str) -> str:
    return f" in {metric}" if metric in LOWER_IS_BETTER else f" of {metric}"


def _named(metric: str) -> str:
    return f"{metric} (lower is better)" if metric in LOWER_IS_BETTER else metric
