"""What came out of a run: per arm and seed, and over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checkpoints import write_json
from .evaluation import LOWER_IS_BETTER
from .preprocessing import Prepared
from .schema import Recipe

RESULTS = "results.json"


@dataclass(frozen=True)
class ArmResult:
    """One arm with one seed.

    Attributes:
        arm: Name of the arm.
        seed: Seed.
        steps: Optimizer steps, those before the split included.
        metrics: Name -> value after the last step, on the evaluation examples.
        curve: `step`, the metrics and `nonzeros` (if they can be counted), at every evaluation.
        nonzeros: Numbers of the model that are not zero by structure; 0 if unknown.
        seconds: Wall time of the training, evaluations in its course and that before the split
            included.
        audit: What `fpe_hf.audit` found, for widened models.
        interference: Metrics of the up projections `before` and `after` the training.
        siblings: How far the siblings of widened blocks had parted `before` and `after` the
            training (`fpe_hf.metrics.sibling_distances`).
        flops: Of the whole training, as `fpe_hf.recipes.costs` estimates them; 0 if unknown.
        peak_parameters: Most trainable parameters at any time; 0 if unknown.
        disk_bytes: Of the trained model's tensors on disk; 0 if unknown.
    """

    arm: str
    seed: int
    steps: int
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    nonzeros: int
    seconds: float
    audit: dict[str, Any] | None = None
    interference: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    siblings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    flops: float = 0.0
    peak_parameters: int = 0
    disk_bytes: int = 0

    def summary(self, metric: str) -> str:
        """One line."""
        return f"{metric} {show(metric, self.metrics[metric])} after {self.steps} steps"

    def write(self, file: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> ArmResult:
        """Reads what `write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Summary:
    """One metric of one arm over the seeds.

    Attributes:
        arm: Name of the arm.
        mean: Mean over the seeds.
        std: Standard deviation over the seeds, 0 for a single one.
        values: One per seed.
        gain: Mean over seeds of the difference to `dense` with the same seed, positive if better.
        gain_error: Standard error of `gain`; `None` for a single seed.
        nonzeros: As in `ArmResult`.
    """

    arm: str
    mean: float
    std: float
    values: list[float]
    gain: float
    gain_error: float | None
    nonzeros: int


@dataclass(frozen=True)
class Results:
    """All arms and seeds.

    Attributes:
        recipe: The recipe as it was run, as plain values.
        dataset: What the data are called.
        metrics: Names of the metrics; the first compares arms.
        runs: Every arm of every seed.
        classes: Number of classes, 0 if there are none.
        examples: Number of training and of evaluation examples, 0 for streams.
    """

    recipe: dict[str, Any]
    dataset: str
    metrics: tuple[str, ...]
    runs: list[ArmResult]
    classes: int
    examples: tuple[int, int]

    @classmethod
    def of(cls, recipe: Recipe, runs: list[ArmResult], prepared: Prepared) -> Results:
        """Gathers what a run left."""
        parts = (prepared.train, prepared.eval)
        sizes = [len(part) if hasattr(part, "__len__") else 0 for part in parts]
        return cls(
            recipe=recipe.model_dump(mode="json"),
            dataset=recipe.data.source,
            metrics=recipe.metrics,
            runs=runs,
            classes=len(prepared.classes),
            examples=(sizes[0], sizes[1]),
        )

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the recipe's order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of_arm(self, arm: str) -> list[ArmResult]:
        """The runs of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def summary(self, metric: str | None = None) -> list[Summary]:
        """Every arm over the seeds.

        Args:
            metric: Name; by default the first.
        """
        metric = metric or self.metrics[0]
        sign = -1 if metric in LOWER_IS_BETTER else 1
        dense = {run.seed: run.metrics[metric] for run in self.of_arm("dense")}
        summaries = []
        for arm in self.arms:
            runs = self.of_arm(arm)
            values = [run.metrics[metric] for run in runs]
            gains = [sign * (run.metrics[metric] - dense[run.seed]) for run in runs]
            summaries.append(
                Summary(
                    arm=arm,
                    mean=statistics.fmean(values),
                    std=_spread(values) or 0.0,
                    values=values,
                    gain=statistics.fmean(gains),
                    gain_error=standard_error(gains),
                    nonzeros=runs[0].nonzeros,
                )
            )
        return summaries

    def best(self) -> ArmResult:
        """The widened run with the best value of the first metric."""
        metric = self.metrics[0]
        pick = min if metric in LOWER_IS_BETTER else max
        return pick(self.of_arm("fpe"), key=lambda run: run.metrics[metric])

    def write(self, folder: Path) -> None:
        """Writes `results.json`; arms are summed up in the form that model cards read."""
        arms = {s.arm: {k: v for k, v in asdict(s).items() if k != "arm"} for s in self.summary()}
        content = {"dataset": self.dataset, "metric": self.metrics[0], "arms": arms}
        write_json(folder / RESULTS, {**content, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Reads what `write` wrote."""
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        names = ("recipe", "dataset", "classes")
        return cls(
            **{name: content[name] for name in names},
            metrics=tuple(content["metrics"]),
            runs=[ArmResult(**run) for run in content["runs"]],
            examples=tuple(content["examples"]),
        )


def standard_error(values: Iterable[float]) -> float | None:
    """Of the mean; `None` for fewer than two values."""
    values = list(values)
    spread = _spread(values)
    return None if spread is None else spread / len(values) ** 0.5


def _spread(values: list[float]) -> float | None:
    """Standard deviation; `None` for fewer than two values, NaN if one is not finite."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def show(metric: str, value: float) -> str:
    """A value in the unit people read: shares in percent."""
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{value:.2%}"
