"""Metrics: those that come with the package and work offline, and any other by its Hub id."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from ..errors import RecipeError

FROM_LOSS = ("loss", "perplexity")
LOWER_IS_BETTER = ("loss", "perplexity")
_TOP = 5


class _Bundled(evaluate.Metric):  # type: ignore[misc]
    """A metric over predicted and true classes."""

    description = ""

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="Classes as integers.",
            features=datasets.Features(columns),
        )


class Accuracy(_Bundled):
    """Share of predictions that are right."""

    description = "Share of predictions that are right."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class F1(_Bundled):
    """F1 score, the mean over classes (macro)."""

    description = "F1 score, the mean over classes."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {"f1": float(f1_score(references, predictions, average="macro"))}


BUNDLED: Mapping[str, type[_Bundled]] = {"accuracy": Accuracy, "f1": F1}
OFFLINE = (*BUNDLED, "top5_accuracy", *FROM_LOSS)


def make_compute_metrics(names: Sequence[str]) -> Callable[[Any], dict[str, float]] | None:
    """The Trainer's `compute_metrics` for the metrics that need predictions.

    Raises:
        RecipeError: A metric cannot be loaded.
    """
    wanted = [name for name in names if name not in FROM_LOSS]
    if not wanted:
        return None
    loaded = {name: _load(name) for name in wanted if name != "top5_accuracy"}

    def compute(outcome: Any) -> dict[str, float]:
        ranked, labels = np.asarray(outcome.predictions), np.asarray(outcome.label_ids)
        values: dict[str, float] = {}
        for name in wanted:
            if name == "top5_accuracy":
                hits = (ranked[:, :_TOP] == labels[:, None]).any(1)
                values[name] = float(hits.mean())
            else:
                scores = loaded[name].compute(predictions=ranked[:, 0], references=labels)
                values[name] = float(scores.get(name, next(iter(scores.values()))))
        return values

    return compute


def best_classes(logits: Any, labels: Tensor) -> Tensor:
    """The likeliest classes in order, all that metrics need to be kept of the logits."""
    scores = logits[0] if isinstance(logits, (tuple, list)) else logits
    best: Tensor = torch.topk(scores, min(_TOP, scores.shape[-1]), dim=-1).indices
    return best


def _load(name: str) -> Any:
    if name in BUNDLED:
        return BUNDLED[name]()
    try:
        return evaluate.load(name)
    except Exception as error:  # whatever the network or the metric's own code raises
        raise RecipeError(
            f"evaluate.metrics: {name!r} cannot be loaded ({type(error).__name__}); without the "
            f"Hub there are {', '.join(OFFLINE)}."
        ) from error


def from_loss(name: str, loss: float) -> float:
    """The value of a metric that follows from the mean loss."""
    if name == "loss":
        return loss
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def better(name: str, value: float, other: float) -> bool:
    """Whether a value of a metric beats another."""
    return value < other if name in LOWER_IS_BETTER else value > other
