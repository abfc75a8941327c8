"""Tables and figures of accuracies gained over a dense baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .report import Row, new_figure
from .statistics import gained, mean
from .trials import DENSE, Arm


def gain_rows(accuracies: Mapping[Arm, Tensor], **setting: Any) -> list[Row]:
    """A row per arm.

    Args:
        accuracies: In percent `[seeds]`, by arm, those of `("dense", 1)` among them; the same
            place belongs to the same seed.
        setting: First columns of the table.
    """
    rows: list[Row] = []
    for (arm, alpha), accuracy in accuracies.items():
        found, gain = mean(accuracy), mean(accuracy - accuracies[DENSE, 1])
        rows.append(
            {
                **setting,
                "arm": arm,
                "alpha": alpha,
                "accuracy": found.value,
                "ci95": found.half_width,
                "gain": gain.value,
                "gain ci95": gain.half_width,
                "beside dense": _word(accuracy, accuracies[DENSE, 1]) if arm != DENSE else "",
                "seeds": found.count,
            }
        )
    return rows


def _word(accuracy: Tensor, dense: Tensor) -> str:
    return gained(accuracy, dense).word or ""


def told(rows: Sequence[Row], by: str) -> str:
    """The gains of rows, each after its value of column `by`; what is worse is in bold."""
    words = []
    for row in rows:
        word = f"{row[by]}: {row['gain']:+.1f} ± {row['gain ci95']:.1f}"
        words.append(f"**{word}**" if row["beside dense"] == "worse" else word)
    return ", ".join(words)


def told_by_arm(rows: Sequence[Row], arms: Iterable[Arm], by: str) -> str:
    """A line for every arm: see `told`."""
    return "\n".join(
        f"- {arm}, alpha {alpha}: {told(select(rows, arm=arm, alpha=alpha), by)}"
        for arm, alpha in arms
    )


def dense_accuracies(rows: Sequence[Row]) -> str:
    """Those of the dense baselines, one after the other."""
    return ", ".join(f"{row['accuracy']:.1f}" for row in select(rows, arm=DENSE))


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that have the wanted values in the named columns."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def gain_figure(rows: Sequence[Row], x: str, panels: str | None = None) -> Any:
    """Gains over a column, a line per arm and expansion factor.

    Args:
        rows: From `gain_rows`.
        x: Column of the horizontal axis.
        panels: Column whose values get axes of their own.
    """
    values = list(dict.fromkeys(row[panels] for row in rows)) if panels else [None]
    figure, axes = new_figure(len(values))
    ticks = list(dict.fromkeys(row[x] for row in rows))
    arms = [arm for arm in dict.fromkeys((r["arm"], r["alpha"]) for r in rows) if arm[0] != DENSE]
    for ax, value in zip(axes, values, strict=True):
        shown = select(rows, **{panels: value}) if panels else rows
        for place, (arm, alpha) in enumerate(arms):
            own = select(shown, arm=arm, alpha=alpha)
            shift = 0.08 * (place - (len(arms) - 1) / 2)  # so that the bars do not hide each other
            places = [ticks.index(row[x]) + shift for row in own]
            gains, errors = ([row[name] for row in own] for name in ("gain", "gain ci95"))
            ax.errorbar(places, gains, errors, marker="o", markersize=4, label=f"{arm}, α={alpha}")
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_xticks(range(len(ticks)), ticks)
        ax.set_xlabel(x)
        if panels:
            ax.set_title(f"{value} {panels}", fontsize="medium")
    axes[0].set_ylabel("gain over dense (points)")
    axes[0].legend(frameon=False, fontsize="small")
    return figure
