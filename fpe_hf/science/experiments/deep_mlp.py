"""Five layers: four hidden ones, all expanded."""

from __future__ import annotations

from ..classifiers import compare_classifiers
from ..embeddings import docstring_embeddings
from ..gains import dense_accuracies, gain_figure, gain_rows, told_by_arm
from ..report import Report, Row

HIDDEN_LAYERS, WIDTHS = 4, (8, 16, 32)
ARMS = [("random", 2), ("random", 4)]


def run(full: bool) -> Report:
    """Trains deep networks of all widths."""
    seeds = 20 if full else 5
    data = docstring_embeddings()
    rows: list[Row] = []
    for width in WIDTHS:
        outcomes = compare_classifiers(data, [width] * HIDDEN_LAYERS, ARMS, seeds=seeds)
        accuracies = {arm: outcome.accuracy for arm, outcome in outcomes.items()}
        rows += gain_rows(accuracies, neurons=width)
    text = (
        f"Networks of {HIDDEN_LAYERS + 1} layers on the embeddings of docstrings, "
        f"{len(data.names)} classes; all {HIDDEN_LAYERS} hidden layers are expanded, one after the "
        f"other, after 25 of 50 epochs; {seeds} seeds. Dense networks with "
        f"{', '.join(map(str, WIDTHS))} neurons per layer reach "
        f"{dense_accuracies(rows)} %.\n\nGains over dense in points, by neurons:\n\n"
        f"{told_by_arm(rows, ARMS, 'neurons')}\n\nThe paper reports gains with five "
        "layers as well. Between hidden layers of one width the copies of the outgoing weights "
        "have to be paid for by a third of all weights at alpha 2, and by three fifths at alpha 4."
    )
    return Report("Five layers", text, rows, {"deep-mlp": gain_figure(rows, "neurons")})
