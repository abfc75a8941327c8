"""How long a forward pass takes, dense and widened side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ..building import auto_class
from ..schema import Recipe
from .environment import device_name

Inputs = Mapping[str, Any]

_ROUNDS = 21
_FEWEST_ROUNDS = 5
_SHORTEST_ROUND = 0.005
_LONGEST = 10.0
"""Seconds for one batch size, unless the fewest rounds take longer."""


@dataclass(frozen=True)
class Timing:
    """Forward passes of one batch size, in rounds of first one model, then the other.

    Attributes:
        examples: Batch size.
        dense: Seconds per pass of the dense model, by round.
        widened: Likewise.
    """

    examples: int
    dense: tuple[float, ...]
    widened: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds per pass, dense and widened."""
        return statistics.median(self.dense), statistics.median(self.widened)

    @property
    def ratio(self) -> float:
        """Median over rounds of widened to dense."""
        return statistics.median(self._ratios)

    @property
    def middle(self) -> tuple[float, float]:
        """Between which ratios the middle half of the rounds lies."""
        low, _, high = statistics.quantiles(self._ratios, n=4, method="inclusive")
        return low, high

    @property
    def _ratios(self) -> list[float]:
        return [w / d for w, d in zip(self.widened, self.dense, strict=True)]


@dataclass(frozen=True)
class Latency:
    """Latency of a dense and a widened model.

    Attributes:
        timings: By batch size, rising.
        device: What they ran on.
        threads: Threads of a pass, on a CPU.
        dtype: Of the weights.
    """

    timings: tuple[Timing, ...]
    device: str
    threads: int
    dtype: str


def measure_latency(dense: nn.Module, widened: nn.Module, inputs: Inputs) -> Latency:
    """Times both models in this process, in turns, for one example and for a batch.

    Args:
        dense: A model.
        widened: Its widened counterpart, on the same device.
        inputs: Keyword arguments of a forward pass; tensors are `[batch, ...]`.
    """
    weights = next(dense.parameters())
    placed = {name: _to(value, weights.device) for name, value in inputs.items()}
    batch = next(len(value) for value in placed.values() if _is_batch(value))
    with _evaluating(dense), _evaluating(widened), torch.inference_mode():
        timings = tuple(
            _time(dense, widened, _first(placed, examples), examples)
            for examples in sorted({1, batch})
        )
    name = str(weights.dtype).removeprefix("torch.")
    return Latency(timings, device_name(weights.device), torch.get_num_threads(), name)


def measure_saved(recipe: Recipe, dense: Path, widened: Path, inputs: Inputs) -> Latency:
    """As `measure_latency`, of two models that a run saved.

    Args:
        recipe: The recipe of the run.
        dense: Folder of the dense model.
        widened: Folder of the widened model.
        inputs: See `measure_latency`.
    """
    device = PartialState().device
    pair = [
        auto_class(recipe).from_pretrained(folder, dtype="auto", trust_remote_code=False).to(device)
        for folder in (dense, widened)
    ]
    return measure_latency(pair[0], pair[1], inputs)


def _time(dense: nn.Module, widened: nn.Module, inputs: Inputs, examples: int) -> Timing:
    timers = [_timer(dense, inputs), _timer(widened, inputs)]
    longest = max(timer.timeit(1).median for timer in timers)
    calls = math.ceil(_SHORTEST_ROUND / longest)
    per_round = 2 * (calls + 2) * longest  # timeit warms up with two calls
    rounds = min(_ROUNDS, max(_FEWEST_ROUNDS, int(_LONGEST / per_round)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for model in (0, 1) if number % 2 else (1, 0):
            seconds[model].append(timers[model].timeit(calls).median)
    return Timing(examples, tuple(seconds[0]), tuple(seconds[1]))


def _timer(model: nn.Module, inputs: Inputs) -> Timer:
    """A timer that waits for accelerators and keeps the number of threads."""
    return Timer(
        "model(**inputs)",
        globals={"model": model, "inputs": inputs},
        num_threads=torch.get_num_threads(),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _first(inputs: Inputs, examples: int) -> dict[str, Any]:
    return {k: v[:examples] if _is_batch(v) else v for k, v in inputs.items()}


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
