"""Two arms compared over the seeds, and whether the difference can be told from chance."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from ..evaluation import LOWER_IS_BETTER
from ..results import Results, standard_error

CLEAR = 2
"""Standard errors that a difference must exceed to count."""

Outcome = Literal["better", "worse", "unclear", "single", "broken"]


@dataclass(frozen=True)
class Comparison:
    """One arm against another by one metric.

    Attributes:
        metric: Name.
        arm: The arm.
        other: What it is compared with.
        value: Mean of the arm over the seeds.
        other_value: Mean of the other.
        gains: Per seed, the difference between the two, positive if the arm is better.
    """

    metric: str
    arm: str
    other: str
    value: float
    other_value: float
    gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Mean of the gains."""
        return statistics.fmean(self.gains)

    @property
    def error(self) -> float | None:
        """Standard error of `gain`; `None` for a single seed."""
        return standard_error(self.gains)

    @property
    def outcome(self) -> Outcome:
        """`better` or `worse` by more than two standard errors, or why neither can be said."""
        if not all(map(math.isfinite, self.gains)):
            return "broken"
        if self.error is None:
            return "single"
        if abs(self.gain) <= CLEAR * self.error:
            return "unclear"
        return "better" if self.gain > 0 else "worse"

    @property
    def wins(self) -> int:
        """Seeds with which the arm is better."""
        return sum(gain > 0 for gain in self.gains)


def measured(results: Results) -> tuple[str, ...]:
    """The recipe's metrics, and the loss, which every run measures."""
    return tuple(dict.fromkeys((*results.metrics, "loss")))


def compare(results: Results, metric: str, arm: str, other: str) -> Comparison:
    """Compares two arms by the seeds that both have."""
    ours = {run.seed: run.metrics[metric] for run in results.of_arm(arm)}
    theirs = {run.seed: run.metrics[metric] for run in results.of_arm(other)}
    seeds = [seed for seed in ours if seed in theirs]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return Comparison(
        metric,
        arm,
        other,
        statistics.fmean(ours[seed] for seed in seeds),
        statistics.fmean(theirs[seed] for seed in seeds),
        tuple(sign * (ours[seed] - theirs[seed]) for seed in seeds),
    )
