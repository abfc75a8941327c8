"""Narrow networks on the pixels of FashionMNIST."""

from __future__ import annotations

from dataclasses import replace

from ..classifiers import HALF, compare_classifiers
from ..data import fashion_mnist
from ..gains import gain_figure, gain_rows, select, told
from ..report import Report, Row
from ..trials import DENSE

WIDTHS = (4, 8, 16, 32)
ARMS = [("random", 2), ("random", 4), ("feature", 2), ("overlap", 2), ("overlap", 4)]


def run(full: bool) -> Report:
    """Trains networks of all widths."""
    seeds = 10 if full else 5
    data = fashion_mnist()
    if not full:
        data = data.first_examples(10_000, 10_000)
    half = replace(HALF, batch_size=256)
    rows: list[Row] = []
    for width in WIDTHS:
        outcomes = compare_classifiers(data, [width], ARMS, seeds=seeds, half=half)
        accuracies = {arm: outcome.accuracy for arm, outcome in outcomes.items()}
        rows += gain_rows(accuracies, neurons=width)
    dense = ", ".join(f"{row['accuracy']:.1f}" for row in select(rows, arm=DENSE))
    lines = [
        f"- {arm}, alpha {alpha}: {told(select(rows, arm=arm, alpha=alpha), 'neurons')}"
        for arm, alpha in ARMS
    ]
    text = (
        f"Networks of one hidden layer on pixels, {len(data.y):,} training examples and "
        f"{len(data.test_y):,} to test on, split after 25 of 50 epochs; {seeds} seeds. Dense "
        f"networks with {', '.join(map(str, WIDTHS))} neurons reach {dense} %.\n\nGains over "
        "dense in points, by neurons:\n\n" + "\n".join(lines) + "\n\nThe paper reports a gain at "
        "every width, largest for the narrowest, no difference between random and feature, and "
        "that overlapping inputs are clearly worse."
    )
    return Report("FashionMNIST", text, rows, {"fashion-mnist": gain_figure(rows, "neurons")})
