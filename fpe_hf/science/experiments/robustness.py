"""Accuracy under noise on inputs and on weights, dense and expanded at equal non-zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..classifiers import PIXELS, compare_classifiers, pixels, trials
from ..gains import gain_rows, select, told
from ..noise import noisy_inputs, noisy_weights
from ..report import Report, Row, new_figure
from ..trials import RANDOM, Arm, Outcome, Trials

NEURONS, ARMS = 16, [(RANDOM, 2), (RANDOM, 4)]
LEVELS = {"inputs": (0.0, 0.1, 0.2, 0.4, 0.8), "weights": (0.0, 0.1, 0.2, 0.4, 0.8)}


def run(full: bool) -> Report:
    """Trains without noise, tests with it."""
    seeds = 20 if full else 8
    data = pixels(full)
    outcomes = compare_classifiers(data, [NEURONS], ARMS, seeds=seeds, half=PIXELS)
    both = trials(data)
    rows: list[Row] = []
    for kind, levels in LEVELS.items():
        for level in levels:
            accuracies = _under_noise(both, outcomes, kind, level)
            rows += gain_rows(accuracies, noise=kind, level=level)
    lines = [
        f"- noise on {kind}, alpha {alpha}: "
        f"{told(select(rows, noise=kind, arm=arm, alpha=alpha), 'level')}"
        for kind in LEVELS
        for arm, alpha in ARMS
    ]
    text = (
        f"Networks with {NEURONS} neurons on FashionMNIST, trained without noise as in the "
        f"experiment of that name, tested with Gaussian noise; {seeds} seeds. Noise on inputs has "
        "a standard deviation in units of the pixels' range, noise on weights in units of the "
        "root mean square of the layer's weights that exist. Dense and expanded networks have as "
        "many numbers. The paper does not measure this.\n\nGains over dense in points, by level of "
        "noise:\n\n" + "\n".join(lines)
    )
    return Report("Robustness", text, rows, {"robustness": _figure(rows)})


def _under_noise(
    both: Trials, outcomes: Mapping[Arm, Outcome], kind: str, level: float
) -> dict[Arm, Tensor]:
    if kind == "inputs":
        noisy = replace(both, test_x=noisy_inputs(both.test_x, level))
        return {arm: noisy.outcome(out.networks).accuracy for arm, out in outcomes.items()}
    return {
        arm: both.outcome(noisy_weights(out.networks, level)).accuracy
        for arm, out in outcomes.items()
    }


def _figure(rows: list[Row]) -> object:
    figure, axes = new_figure(len(LEVELS))
    for ax, kind in zip(axes, LEVELS, strict=True):
        for arm, alpha in dict.fromkeys((row["arm"], row["alpha"]) for row in rows):
            own = select(rows, noise=kind, arm=arm, alpha=alpha)
            levels, values = [r["level"] for r in own], [r["accuracy"] for r in own]
            label = arm if alpha == 1 else f"{arm}, α={alpha}"
            ax.errorbar(levels, values, [r["ci95"] for r in own], marker="o", label=label)
        ax.set_xlabel(f"noise on {kind}")
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(frameon=False)
    return figure
