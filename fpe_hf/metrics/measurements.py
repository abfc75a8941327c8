"""The metrics as measurements of the `evaluate` library, from this package and not from the Hub."""

# ruff: noqa: E402 (what is not installed is named before it is imported)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..extras import need
from . import activations, weights

need("recipes", "Measurements of the `evaluate` library")

import evaluate
from datasets import Features, Value
from datasets import Sequence as SequenceFeature


class _Measurement(evaluate.Measurement):  # type: ignore[misc]
    """A measurement that hands rows of numbers, and perhaps a label for each, to functions."""

    functions: Sequence[Callable[..., Any]]
    labelled = False

    def _info(self) -> evaluate.MeasurementInfo:
        features = {"data": SequenceFeature(Value("float32"))}
        if self.labelled:
            features["labels"] = Value("int64")
        described = "\n\n".join(function.__doc__ or "" for function in self.functions)
        return evaluate.MeasurementInfo(
            description=self.__doc__ or "",
            citation="arXiv 2510.04500",
            inputs_description=described,
            features=Features(features),
        )

    def _compute(self, data: Any, labels: Any = None) -> dict[str, Any]:
        arguments = [torch.as_tensor(data, dtype=torch.float32, device="cpu")]
        if self.labelled:
            arguments.append(torch.as_tensor(labels, dtype=torch.int64, device="cpu"))
        results = ((function.__name__, function(*arguments)) for function in self.functions)
        return {
            name: value.tolist() if isinstance(value, Tensor) else value for name, value in results
        }


class WeightInterference(_Measurement):
    """Interference in a weight matrix; `data` holds its rows, one neuron each."""

    functions = (
        weights.feature_capacity,
        weights.mean_cosine,
        weights.gram_off_diagonal_energy,
    )


class NeuronSelectivity(_Measurement):
    """What neurons respond to; `data` holds their activations, one row per example."""

    functions = (
        activations.class_selectivity,
        activations.class_entropy,
        activations.polysemanticity,
    )
    labelled = True


class ActivationDimension(_Measurement):
    """How many dimensions activations fill; `data` holds them, one row per example."""

    functions = (activations.effective_rank, activations.participation_ratio)
