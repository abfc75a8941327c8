"""Numbers in the units that people read."""

from __future__ import annotations

import re

from ..evaluation import LOWER_IS_BETTER
from ..results import show

_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB")


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent, and its differences in points."""
    return metric not in LOWER_IS_BETTER


def amount(metric: str, difference: float) -> str:
    """The size of a difference between two values of a metric: `1.23 points`."""
    size = abs(difference)
    return f"{100 * size:.2f} points" if is_share(metric) else f"{size:.3f}"


def signed(metric: str, difference: float, half: float | None = None) -> str:
    """A difference with its sign, and half of its interval if it has one: `+1.23 ± 0.40`."""
    factor, digits = (100, 2) if is_share(metric) else (1, 3)
    tail = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * difference:+.{digits}f}{tail}"


def interval(metric: str, ends: tuple[float, float]) -> str:
    """An interval of differences: `+0.40 to +1.23`."""
    return " to ".join(signed(metric, end) for end in ends)


def with_spread(metric: str, mean: float, spread: float | None) -> str:
    """A value and its spread: `88.61% ± 0.40%`."""
    return show(metric, mean) + ("" if spread is None else f" ± {show(metric, spread)}")


def axis(metric: str) -> tuple[float, str]:
    """Factor and label of an axis that shows a metric."""
    return (100.0, f"{metric} (%)") if is_share(metric) else (1.0, metric)


def size(number: int) -> str:
    """A number of bytes: `2.5 KiB`."""
    power = min(max(number.bit_length() - 1, 0) // 10, len(_PREFIXES) - 1)
    digits = 1 if power else 0
    return f"{number / 1024**power:.{digits}f} {_PREFIXES[power]}"


def slug(name: str) -> str:
    """A name that can be part of a file name."""
    return re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-").lower()
