"""Metrics: those that come with the package and work offline, and any other by its Hub id."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import RecipeError

FROM_LOSS = ("loss", "perplexity")
LOWER_IS_BETTER = ("loss", "perplexity")
_TOP = 5

Measure = Callable[[Any, Any], float]
"""From `[examples, ranks]` of classes, the likeliest first, and the true classes to a value."""


def _accuracy(ranked: Any, labels: Any) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, ranked[:, 0]))


def _f1(ranked: Any, labels: Any) -> float:
    """The mean over classes (macro)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, ranked[:, 0], average="macro"))


def _top5_accuracy(ranked: Any, labels: Any) -> float:
    return float((ranked[:, :_TOP] == labels[:, None]).any(1).mean())


BUNDLED: Mapping[str, Measure] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "top5_accuracy": _top5_accuracy,
}
OFFLINE = (*BUNDLED, *FROM_LOSS)


def make_compute_metrics(names: Sequence[str]) -> Callable[[Any], dict[str, float]] | None:
    """The Trainer's `compute_metrics` for the metrics that need predictions.

    Raises:
        RecipeError: A metric cannot be loaded.
    """
    measures = {n: BUNDLED.get(n) or _load(n) for n in names if n not in FROM_LOSS}
    if not measures:
        return None

    def compute(outcome: Any) -> dict[str, float]:
        ranked, labels = np.asarray(outcome.predictions), np.asarray(outcome.label_ids)
        return {name: measure(ranked, labels) for name, measure in measures.items()}

    return compute


@dataclass(frozen=True)
class Outcomes:
    """What became of every evaluation example, in classification.

    Attributes:
        examples: How many there are.
        bits: Whether each was right, packed, in base64.
        by_class: Per class, how many were right, and how many there are.
    """

    examples: int
    bits: str
    by_class: list[list[int]]

    @classmethod
    def of(cls, predictions: Any, labels: Any) -> Outcomes | None:
        """Reads what the Trainer hands to metrics; `None` if it is not one class per example."""
        ranked, labels = np.asarray(predictions), np.asarray(labels)
        if ranked.ndim != 2 or labels.ndim != 1 or not len(labels) or labels.min() < 0:
            return None
        right = ranked[:, 0] == labels
        of_class = np.bincount(labels)
        right_of_class = np.bincount(labels[right], minlength=len(of_class))
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        return cls(len(labels), bits, np.stack([right_of_class, of_class], 1).tolist())

    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each example was right."""
        packed = np.frombuffer(base64.b64decode(self.bits), np.uint8)
        return np.unpackbits(packed, count=self.examples).astype(bool)


def best_classes(logits: Any, labels: Tensor) -> Tensor:
    """The likeliest classes in order, all that metrics need to be kept of the logits."""
    scores = logits[0] if isinstance(logits, (tuple, list)) else logits
    best: Tensor = torch.topk(scores, min(_TOP, scores.shape[-1]), dim=-1).indices
    return best


def _load(name: str) -> Measure:
    """A metric of the `evaluate` library, whose code is run."""
    import evaluate

    try:
        metric = evaluate.load(name)
    except Exception as error:  # whatever the network or the metric's own code raises
        raise RecipeError(
            f"evaluate.metrics: {name!r} cannot be loaded ({type(error).__name__}); without the "
            f"Hub there are {', '.join(OFFLINE)}."
        ) from error

    def measure(ranked: Any, labels: Any) -> float:
        scores = metric.compute(predictions=ranked[:, 0], references=labels)
        return float(scores.get(name, next(iter(scores.values()))))

    return measure


def from_loss(name: str, loss: float) -> float:
    """The value of a metric that follows from the mean loss."""
    if name == "loss":
        return loss
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
