"""The pictures of the report, as PNG, for light and for dark pages."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter, StrMethodFormatter
from numpy.typing import NDArray

from ...comparing import FLOOR, half_width
from ..results import Results
from .curves import close_step, curve, gain_curve, split_step
from .tables import COMPARED, INTERFERENCE, interference_means
from .units import axis, is_share


@dataclass(frozen=True)
class Theme:
    """Colours of a picture.

    Attributes:
        page: Background.
        text: Texts and axes.
        faint: Grid and auxiliary lines.
        arms: Arm -> colour; told apart by people who see few colours too (Okabe and Ito's).
    """

    page: str
    text: str
    faint: str
    arms: dict[str, str]


LIGHT = Theme(
    page="#ffffff",
    text="#24292f",
    faint="#8c959f",
    arms={
        "dense": "#57606a",
        "fpe": "#0072b2",
        "fpe-random": "#cc79a7",
        "overlap": "#d55e00",
        "wide-dense": "#009e73",
        "narrow-dense": "#b58900",
        "dense-longer": "#24292f",
    },
)
DARK = Theme(
    page="#0d1117",
    text="#e6edf3",
    faint="#6e7681",
    arms={
        "dense": "#b1bac4",
        "fpe": "#56b4e9",
        "fpe-random": "#e39ac6",
        "overlap": "#e69f00",
        "wide-dense": "#2ec49a",
        "narrow-dense": "#f0e442",
        "dense-longer": "#e6edf3",
    },
)

_STYLES = {
    "fpe-random": "--",
    "overlap": "--",
    "wide-dense": "-.",
    "narrow-dense": ":",
    "dense-longer": "-.",
}
_MARKERS = {"overlap": "^", "wide-dense": "D", "fpe-random": "s", "narrow-dense": "v"}
_SAME = 5e-3
"""Lines that are nowhere further apart, as a share of the axis, cannot be told apart."""
_SAME_BUDGET = ("fpe", "fpe-random", "overlap", "narrow-dense")
"""Arms whose gain is drawn; that of `wide-dense` would dwarf it."""
_IN_A_ROW = 4
"""Arms in a row of a legend; more would not fit."""
_FEW = 30
"""Points up to which each is marked."""

_LESS_INTERFERENCE = {
    "feature_capacity": "higher is better",
    "mean_cosine": "nearer 0 is better",
    "gram_off_diagonal_energy": "lower is better",
}


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: Part of a file name.
        caption: What it shows.
        light: PNG for a light page.
        dark: PNG for a dark page.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes


def curves_figure(results: Results, metric: str, theme: Theme) -> bytes | None:
    """A metric by step of every arm, and below it the gain over dense of arms with FPE's budget.

    Args:
        results: The run.
        metric: Name.
        theme: Colours.

    Returns:
        PNG, or `None` if the metric was not evaluated while the arms trained.
    """
    factor, label = axis(metric)
    figure, (above, below) = _new(theme, (7.5, 5.4), 2, 1, sharex=True, height_ratios=[3, 2])
    lines: list[_Line] = []
    gains: list[_Line] = []
    for arm in results.arms:
        line = curve(results, arm, metric)
        if line is None:
            continue
        low, high = (factor * bound for bound in line.span)
        lines.append(_Line(arm, line.steps, factor * line.mean, (low, high)))
        gain = gain_curve(results, arm, metric) if arm in _SAME_BUDGET else None
        if gain is not None:
            mean, half = factor * gain.mean, factor * gain.half_width
            gains.append(_Line(arm, gain.steps, mean, (mean - half, mean + half)))
    if not lines:
        return None
    level = max(abs(line.mean).max() for line in lines)
    least = FLOOR * (factor if is_share(metric) else level)
    _draw(above, lines, theme, least)
    below.axhline(0, color=theme.arms["dense"], linewidth=1.2)
    _draw(below, gains, theme, least)
    _limit(below, gains, least)
    _mark_steps(results, (above, below), theme)
    above.set_ylabel(label, parse_math=False)
    below.set_ylabel("gain over dense\n" + ("(points)" if is_share(metric) else "(reduction)"))
    below.set_xlabel("optimizer steps")
    _legend(figure, above, theme)
    return _png(figure)


def nonzeros_figure(results: Results, theme: Theme) -> bytes | None:
    """Non-zeros by step of every arm, means over seeds.

    Args:
        results: The run.
        theme: Colours.

    Returns:
        PNG, or `None` if they were not counted.
    """
    lines = {arm: curve(results, arm, "nonzeros") for arm in results.arms}
    drawn = {arm: line for arm, line in lines.items() if line is not None}
    if not drawn:
        return None
    figure, (axes,) = _new(theme, (7.5, 3.1), 1, 1)
    _draw(axes, [_Line(arm, line.steps, line.mean) for arm, line in drawn.items()], theme)
    most = max(max(line.mean) for line in drawn.values())
    axes.set_ylim(0, 1.15 * most)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _mark_steps(results, (axes,), theme)
    axes.set_ylabel("non-zeros")
    axes.set_xlabel("optimizer steps")
    _legend(figure, axes, theme)
    return _png(figure)


def _mark_steps(results: Results, panels: Sequence[Any], theme: Theme) -> None:
    """Draws a line where arms were split in mid-training, and one where the budget was closed."""
    split, closed = split_step(results), close_step(results)
    marks = {"opened" if closed else "split": split, "budget closed": closed}
    for name, step in marks.items():
        if step is None:
            continue
        for axes in panels:
            axes.axvline(step, color=theme.faint, linewidth=1.2, linestyle=":")
        panels[0].annotate(
            name,
            xy=(step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="left" if step == closed else "right" if closed else "center",
            va="bottom",
            color=theme.text,
        )


def interference_figure(results: Results, theme: Theme) -> bytes | None:
    """Interference before and after the training, means over projections and seeds.

    Args:
        results: The run.
        theme: Colours.

    Returns:
        PNG, or `None` if it was not measured.
    """
    means = {arm: interference_means(results, arm) for arm in COMPARED}
    means = {arm: by_projection for arm, by_projection in means.items() if by_projection}
    if not means:
        return None
    figure, panels = _new(theme, (7.5, 3.1), 1, len(INTERFERENCE))
    for axes, (name, title) in zip(panels, INTERFERENCE.items(), strict=True):
        lines = []
        for arm, by_projection in means.items():
            pairs = [values[name] for values in by_projection.values()]
            ends = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
            lines.append(_Line(arm, (0, 1), np.array(ends)))
        _draw(axes, lines, theme)
        axes.set_title(f"{title}\n({_LESS_INTERFERENCE[name]})", color=theme.text, fontsize=10)
        axes.set_xticks([0, 1], ["before", "after"])
        axes.set_xlim(-0.2, 1.2)
        axes.margins(y=0.15)
    _legend(figure, panels[0], theme)
    return _png(figure)


_PANELS = 6


def sweep_figure(points: Sequence[tuple[Mapping[str, Any], Results]], theme: Theme) -> bytes | None:
    """The first metric of every arm over the values of a sweep, with 95 % intervals over seeds.

    The key with the most values is the horizontal axis; values of the others get panels.

    Args:
        points: Dotted key -> value, and the results there.
        theme: Colours.

    Returns:
        PNG, or `None` if there are more panels than can be looked at.
    """
    metric = points[0][1].metrics[0]
    factor, label = axis(metric)
    keys = list(points[0][0])
    texts = {key: list(dict.fromkeys(str(values[key]) for values, _ in points)) for key in keys}
    across = max(keys, key=lambda key: len(texts[key]))
    others = [key for key in keys if key != across]
    by_panel: dict[str, list[tuple[int, Results]]] = {}
    for values, results in points:
        name = ", ".join(f"{key.rpartition('.')[2]} {values[key]}" for key in others)
        by_panel.setdefault(name, []).append((texts[across].index(str(values[across])), results))
    if len(by_panel) > _PANELS:
        return None
    rows = -(-len(by_panel) // 3)
    columns = -(-len(by_panel) // rows)
    size = (max(7.5, 2.6 * columns), 3.2 * rows)
    figure, panels = _new(theme, size, rows, columns, sharey=True)
    for unused in panels[len(by_panel) :]:
        unused.set_visible(False)
    for axes, (name, own) in zip(panels, by_panel.items(), strict=False):
        own.sort(key=lambda pair: pair[0])
        arms = list(dict.fromkeys(arm for _, results in own for arm in results.arms))
        for place, arm in enumerate(arms):
            shift = 0.1 * (place - (len(arms) - 1) / 2)  # so that no bar hides another
            found = [(x, [run.metrics[metric] for run in r.of_arm(arm)]) for x, r in own]
            axes.errorbar(
                [x + shift for x, _ in found],
                [factor * statistics.fmean(values) for _, values in found],
                [factor * (half_width(values) or 0.0) for _, values in found],
                color=theme.arms.get(arm, theme.text),
                linestyle=_STYLES.get(arm, "-"),
                marker=_MARKERS.get(arm, "o"),
                markersize=4,
                capsize=3,
                label=arm,
            )
        axes.set_xticks(range(len(texts[across])), texts[across])
        axes.set_xlabel(across, parse_math=False)
        axes.set_title(name, color=theme.text, fontsize=10, parse_math=False)
    panels[0].set_ylabel(label, parse_math=False)
    _legend(figure, panels[0], theme)
    return _png(figure)


def _new(theme: Theme, size: tuple[float, float], rows: int, columns: int, **kwargs: Any) -> Any:
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.page)
    all_axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for axes in all_axes:
        axes.set_facecolor(theme.page)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme.faint)
        axes.tick_params(color=theme.faint, labelcolor=theme.text)
        axes.xaxis.label.set_color(theme.text)
        axes.yaxis.label.set_color(theme.text)
        axes.grid(axis="y", color=theme.faint, alpha=0.25, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, all_axes


@dataclass(frozen=True)
class _Line:
    arm: str
    x: Sequence[float]
    mean: NDArray[np.float64]
    band: tuple[Any, Any] | None = None


def _draw(axes: Any, lines: Sequence[_Line], theme: Theme, least: float = 0.0) -> None:
    """Draws lines; one that another hides is dashed, and its name says so.

    Args:
        axes: Where.
        lines: What.
        theme: Colours.
        least: What the axis spans at least, so that rounding is no landscape.
    """
    if not lines:
        return
    low, high = min(line.mean.min() for line in lines), max(line.mean.max() for line in lines)
    shown: list[_Line] = []
    for line in sorted(lines, key=lambda line: line.arm == "fpe"):  # on top of all others
        twin = next((one for one in shown if _coincide(one, line, max(high - low, least))), None)
        _line(axes, line, twin, theme)
        shown.append(line)
    bottom, top = axes.get_ylim()
    if top - bottom < least:
        axes.set_ylim((bottom + top - least) / 2, (bottom + top + least) / 2)


def _limit(axes: Any, lines: Sequence[_Line], least: float) -> None:
    """Cuts off bands that would press the lines flat, as two seeds have them."""
    means = [0.0, *(value for line in lines for value in line.mean)]
    room = 2 * max(max(means) - min(means), least)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, min(means) - room), min(top, max(means) + room))


def _coincide(one: _Line, other: _Line, span: float) -> bool:
    if len(one.x) < 2 or tuple(one.x) != tuple(other.x):
        return False
    return bool(np.abs(one.mean - other.mean).max() <= _SAME * span)


def _line(axes: Any, line: _Line, twin: _Line | None, theme: Theme) -> None:
    color = theme.arms.get(line.arm, theme.text)
    axes.plot(
        line.x,
        line.mean,
        linestyle=_STYLES.get(line.arm, "-") if twin is None else (0, (3, 3)),
        label=line.arm if twin is None else f"{line.arm} (coincides with {twin.arm})",
        color=color,
        linewidth=2.2 if line.arm == "fpe" else 1.6,
        marker=_MARKERS.get(line.arm, "o") if len(line.x) <= _FEW else None,
        markersize=3.5 if twin is None else 7,
        fillstyle="full" if twin is None else "none",
        zorder=3 if line.arm == "fpe" else 2.5,
    )
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=color, alpha=0.15, linewidth=0)


def _legend(figure: Any, axes: Any, theme: Theme) -> None:
    """One legend above all panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(len(labels), _IN_A_ROW),
        frameon=False,
        labelcolor=theme.text,
        handlelength=3,
    )


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=144)
    return stream.getvalue()
