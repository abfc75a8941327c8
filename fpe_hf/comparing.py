"""The one rule by which two models are compared: in reports, sweeps, reproductions and READMEs.

Models are trained in pairs, one of each kind per seed. The difference is the mean over the pairs.
Two things make it uncertain: another seed would have given another one (Student's t over the
pairs), and so would other evaluation examples. See `docs/report.md`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Word = Literal["better", "worse", "no clear difference", "identical"]

FLOOR = 1e-3
"""The least difference that counts, in units of the scale: 0.1 points, or 0.1 % of a loss."""
ROUNDING = 1e-6
"""Differences up to this, in units of the scale, are rounding."""
_CONFIDENCE = 0.95
_NORMAL = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another.

    Attributes:
        gains: One per seed, positive where the first model is better.
        scale: What `FLOOR` and `ROUNDING` are shares of: 1 for shares, 100 for percent, the size of
            the values for losses.
        evaluation: Half of the 95 % interval that the evaluation set implies; `None` if unknown.
    """

    gains: tuple[float, ...]
    scale: float = 1.0
    evaluation: float | None = None

    @property
    def gain(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(sorted(self.gains))  # no order of seeds shows

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of `gain`; `None` if nothing is known about it."""
        known = [w for w in (half_width(self.gains), self.evaluation) if w is not None]
        return math.hypot(*known) if known else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `gain`."""
        half = self.half_width
        return None if half is None else (self.gain - half, self.gain + half)

    @property
    def word(self) -> Word | None:
        """What can be said about the first model; `None` if a value is not finite."""
        if not self.gains or not all(map(math.isfinite, (*self.gains, self.scale))):
            return None
        if all(abs(gain) <= ROUNDING * self.scale for gain in self.gains):
            return "identical"
        half = self.half_width
        if half is None or abs(self.gain) <= half or abs(self.gain) < FLOOR * self.scale:
            return "no clear difference"
        return "better" if self.gain > 0 else "worse"


def compare(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    lower_is_better: bool = False,
    scale: float | None = 1.0,
    evaluation: float | None = None,
) -> Difference:
    """Compares two models.

    Args:
        ours: A value per seed.
        theirs: Likewise; the same place belongs to the same seed.
        lower_is_better: Whether less is better.
        scale: 1 for shares, 100 for percent; `None` for values without a natural scale, such as
            losses, whose differences count relative to their size.
        evaluation: See `Difference`.
    """
    sign = -1 if lower_is_better else 1
    if scale is None:
        scale = max(abs(statistics.fmean(sorted(values))) for values in (ours, theirs))
    gains = tuple(sign * (one - other) for one, other in zip(ours, theirs, strict=True))
    return Difference(gains, scale, evaluation)


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean (Student's t); `None` for fewer than two values."""
    if len(values) < 2:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    from scipy.stats import t

    quantile = float(t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(sorted(values)) / math.sqrt(len(values))


def paired_half_width(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """What an evaluation set implies, from what became of every example.

    Args:
        ours: `[seeds, examples]`, whether the first model was right.
        theirs: Likewise.
    """
    difference = (np.asarray(ours, float) - np.asarray(theirs, float)).mean(0)
    spread = difference.std(ddof=1) if len(difference) > 1 else 1.0
    return _NORMAL * float(spread) / math.sqrt(len(difference))


def binomial_half_width(ours: float, theirs: float, examples: int) -> float:
    """What an evaluation set implies at most, from two shares of it.

    The models disagree most if as few examples as possible are right, or wrong, under both.

    Args:
        ours: Share of the first model, 0 to 1.
        theirs: Likewise.
        examples: How many there are.
    """
    disagree = min(ours + theirs, 2 - ours - theirs)
    return _NORMAL * math.sqrt(max(disagree - (ours - theirs) ** 2, 0.0) / examples)
