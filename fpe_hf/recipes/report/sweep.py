"""The page of a sweep: every arm at every point, as a table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...files import write_whole
from ..results import POINT, RESULTS, Results
from .content import Report, Section, picture
from .figures import sweep_figure
from .page import HTML, render
from .tables import Table
from .units import signed, with_spread

SWEEP = "sweep.html"

Point = tuple[Mapping[str, Any], Results]
"""Dotted key -> value, and what came out there."""


def read_points(folder: Path) -> list[Point]:
    """The points of a sweep that are done.

    Args:
        folder: `output.folder` of the sweep.
    """
    return [
        (json.loads(file.read_text(encoding="utf-8")), Results.read(file.parent))
        for file in sorted(folder.glob(f"*/{POINT}"))
        if (file.parent / RESULTS).is_file()
    ]


def write_sweep(points: Sequence[Point], folder: Path) -> Path:
    """Writes `sweep.html`; an earlier one is replaced.

    Args:
        points: At least one.
        folder: An existing folder.

    Returns:
        The file.
    """
    write_whole(folder / SWEEP, render(_compose(points), HTML))
    return folder / SWEEP


def _compose(points: Sequence[Point]) -> Report:
    values, first = points[0]
    keys, metric = list(values), first.metrics[0]
    about = (
        f"{len(points)} {'point' if len(points) == 1 else 'points'} · {', '.join(first.arms)}",
        "Every point is a run of its own, with a report in its folder. Gains are over dense at the "
        "same point ± half of their 95 % interval, positive where the arm is better. The more "
        "points there are, the more of them look better or worse by chance.",
    )
    caption = (
        f"{metric} of every arm at every point, means over seeds with their 95 % intervals (none "
        "for a single seed)."
    )
    pictures = tuple(picture("sweep", caption, partial(sweep_figure, points)))
    section = Section("Points", (), pictures, _table(points, keys, metric))
    return Report(f"Sweep of {' and '.join(keys)} on {first.dataset}", about, None, (section,))


def _table(points: Sequence[Point], keys: Sequence[str], metric: str) -> Table:
    rows = []
    for values, results in points:
        for own in results.summary():
            spread = own.std if len(own.values) > 1 else None
            rows.append(
                (
                    *(str(values.get(key, "")) for key in keys),
                    own.arm,
                    with_spread(metric, own.mean, spread),
                    "" if own.arm == "dense" else signed(metric, own.gain, own.gain_ci95),
                    own.verdict or "",
                    f"{own.nonzeros:,}",
                    str(len(own.values)),
                )
            )
    header = (*keys, "arm", metric, "gain over dense", "beside dense", "non-zeros", "seeds")
    return Table(header, tuple(rows), len(keys) + 1)
