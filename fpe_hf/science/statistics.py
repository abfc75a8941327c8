"""Means with confidence intervals, and straight lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..comparing import Difference, compare, half_width


@dataclass(frozen=True)
class Mean:
    """A mean over independent seeds.

    Attributes:
        value: The mean.
        half_width: Half of its 95 % confidence interval (Student's t).
        count: Seeds.
    """

    value: float
    half_width: float
    count: int

    def apart(self, other: Mean) -> bool:
        """Whether the two confidence intervals do not overlap."""
        return abs(self.value - other.value) > self.half_width + other.half_width

    def __str__(self) -> str:
        return f"{self.value:.1f} ± {self.half_width:.1f}"


def mean(values: Tensor) -> Mean:
    """Mean and confidence interval of `[seeds]` values."""
    half = half_width(values.tolist())
    return Mean(float(values.double().mean()), math.nan if half is None else half, len(values))


def gained(accuracy: Tensor, other: Tensor) -> Difference:
    """How much better accuracies in percent are than others of the same seeds, `[seeds]` each.

    The intervals are those over seeds; where all seeds share a test set, it is not in them.
    """
    return compare(accuracy.tolist(), other.tolist(), scale=100.0)


@dataclass(frozen=True)
class Line:
    """A least-squares line `y = slope * x + intercept`, and the share of variance it explains."""

    slope: float
    intercept: float
    r_squared: float


def fit_line(x: npt.ArrayLike, y: npt.ArrayLike) -> Line:
    """Least squares of `y` on `x`."""
    from scipy.stats import linregress

    fit = linregress(np.asarray(x, float), np.asarray(y, float))
    return Line(float(fit.slope), float(fit.intercept), float(fit.rvalue) ** 2)
