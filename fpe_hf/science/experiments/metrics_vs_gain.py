"""Whether interference in the weights predicts the gain in accuracy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from ..comparison import BooleanTask, compare
from ..report import Report, Row, new_figure
from ..statistics import Line, fit_line
from ..trials import DENSE

METRICS = ("feature capacity", "cosine similarity")
STRONG = 0.5  # R^2


def run(full: bool) -> Report:
    """Fits lines through the fold changes of the metrics and the relative gains."""
    seeds = 20 if full else 6
    widths = (4, 8, 16) if full else (4, 8)
    rows: list[Row] = []
    for clauses, neurons in product((4, 8, 16), widths):
        task = replace(BooleanTask(), clauses=clauses, neurons=neurons)
        outcomes = compare(task, alphas=(2, 4), seeds=seeds)
        dense = outcomes[DENSE, 1]
        for (arm, alpha), outcome in outcomes.items():
            if arm == DENSE:
                continue
            rows.append(
                {
                    "clauses": clauses,
                    "neurons": neurons,
                    "arm": arm,
                    "alpha": alpha,
                    "feature capacity": outcome.capacity / dense.capacity,
                    "cosine similarity": outcome.cosine / dense.cosine,
                    "relative gain": outcome.mean.value / dense.mean.value - 1,
                    "seeds": seeds,
                }
            )
    gains = [row["relative gain"] for row in rows]
    lines = {name: fit_line([row[name] for row in rows], gains) for name in METRICS}
    expected = {"feature capacity": 1, "cosine similarity": -1}
    told = [
        f"- {name}: slope {line.slope:+.3f}, R^2 {line.r_squared:.2f}; "
        + ("the paper's sign" if line.slope * expected[name] > 0 else "**not the paper's sign**")
        + (", a strong relation." if line.r_squared >= STRONG else ", **a weak relation.**")
        for name, line in lines.items()
    ]
    text = (
        "Fold change of the metrics of the first layer, expanded over dense, against the relative "
        f"gain in test accuracy: {len(rows)} configurations, {seeds} seeds each. Feature capacity "
        "is the mean over inputs, cosine similarity the mean absolute value over pairs of neurons. "
        "The paper reports that higher capacity and lower similarity go with larger gains, "
        "linearly and with a high R^2.\n\n" + "\n".join(told)
    )
    return Report("Metrics and gain", text, rows, {"metrics-vs-gain": _figure(rows, lines)})


def _figure(rows: list[Row], lines: dict[str, Line]) -> object:
    figure, axes = new_figure(len(METRICS))
    for ax, (name, line) in zip(axes, lines.items(), strict=True):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = [row for row in rows if row["arm"] == arm]
            ax.plot([r[name] for r in own], [r["relative gain"] for r in own], "o", label=arm)
        ends = [min(row[name] for row in rows), max(row[name] for row in rows)]
        ax.plot(ends, [line.slope * x + line.intercept for x in ends], "k--")
        ax.set_title(f"R^2 = {line.r_squared:.2f}", fontsize="medium")
        ax.set_xlabel(f"{name}, fold change")
    axes[0].set_ylabel("relative gain in accuracy")
    axes[0].legend(frameon=False)
    return figure
