"""Narrow networks on the pixels of FashionMNIST."""

from __future__ import annotations

from ..classifiers import PIXELS, compare_classifiers, pixels
from ..gains import dense_accuracies, gain_figure, gain_rows, told_by_arm
from ..report import Report, Row

WIDTHS = (4, 8, 16, 32)
ARMS = [("random", 2), ("random", 4), ("feature", 2), ("overlap", 2), ("overlap", 4)]


def run(full: bool) -> Report:
    """Trains networks of all widths."""
    seeds = 10 if full else 5
    data = pixels(full)
    rows: list[Row] = []
    for width in WIDTHS:
        outcomes = compare_classifiers(data, [width], ARMS, seeds=seeds, half=PIXELS)
        accuracies = {arm: outcome.accuracy for arm, outcome in outcomes.items()}
        rows += gain_rows(accuracies, neurons=width)
    text = (
        f"Networks of one hidden layer on pixels, {len(data.y):,} training examples and "
        f"{len(data.test_y):,} to test on, split after 25 of 50 epochs; {seeds} seeds. Dense "
        f"networks with {', '.join(map(str, WIDTHS))} neurons reach "
        f"{dense_accuracies(rows)} %.\n\nGains over dense in points, by neurons:\n\n"
        f"{told_by_arm(rows, ARMS, 'neurons')}\n\nThe paper reports a gain at "
        "every width, largest for the narrowest, no difference between random and feature, and "
        "that overlapping inputs are clearly worse."
    )
    return Report("FashionMNIST", text, rows, {"fashion-mnist": gain_figure(rows, "neurons")})
