"""What came out of a run: per arm and seed, over the seeds, and of one arm beside another."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..comparing import (
    Difference,
    Word,
    binomial_half_width,
    compare,
    paired_half_width,
)
from .checkpoints import write_json
from .evaluation import LOWER_IS_BETTER, Outcomes
from .preprocessing import Prepared
from .schema import Recipe

RESULTS, POINT, MODEL = "results.json", "point.json", "model"


def model_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where a run keeps the trained model of an arm."""
    return folder / f"seed-{seed}" / arm / MODEL


@dataclass(frozen=True)
class ArmResult:
    """One arm with one seed.

    Attributes:
        arm: Name of the arm.
        seed: Seed.
        steps: Optimizer steps, those before the split included.
        metrics: Name -> value after the last step, on the evaluation examples.
        curve: `step`, the metrics and `nonzeros` (if they can be counted), at every evaluation;
            `nonzeros` also where an open arm was opened.
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
        closed: The step at which an open budget was closed; 0 if there was none.
        outcomes: What became of every evaluation example, for classification.
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
    closed: int = 0
    outcomes: Outcomes | None = None

    def summary(self, metric: str) -> str:
        """One line."""
        return f"{metric} {show(metric, self.metrics[metric])} after {self.steps} steps"

    def write(self, file: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> ArmResult:
        """Reads what `write` wrote."""
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ArmResult:
        """The opposite of `dataclasses.asdict`."""
        outcomes = values.get("outcomes")
        return cls(**{**values, "outcomes": outcomes and Outcomes(**outcomes)})


@dataclass(frozen=True)
class Summary:
    """One metric of one arm over the seeds.

    Attributes:
        arm: Name of the arm.
        mean: Mean over the seeds.
        std: Standard deviation over the seeds, 0 for a single one.
        values: One per seed.
        gain: Mean over seeds of the difference to `dense` with the same seed, positive if better.
        gain_ci95: Half of the 95 % interval of `gain`; `None` if nothing is known about it.
        verdict: Beside `dense`; `None` for itself, and where a value is not finite.
        nonzeros: As in `ArmResult`.
    """

    arm: str
    mean: float
    std: float
    values: list[float]
    gain: float
    gain_ci95: float | None
    verdict: Word | None
    nonzeros: int


@dataclass(frozen=True)
class Comparison:
    """One arm beside another by one metric, over the seeds that both have.

    Attributes:
        metric: Name.
        arm: The arm.
        other: What it is compared with.
        value: Mean of the arm.
        other_value: Mean of the other.
        difference: How much better the arm is.
        evaluation: What the evaluation set's share in the interval goes by: what became of every
            example, a bound that follows from the two values alone, or nothing.
    """

    metric: str
    arm: str
    other: str
    value: float
    other_value: float
    difference: Difference
    evaluation: Literal["examples", "bound", "unknown"]

    @property
    def word(self) -> Word | None:
        """What can be said."""
        return self.difference.word

    @property
    def gain(self) -> float:
        """Mean over seeds, positive if the arm is better."""
        return self.difference.gain

    @property
    def seeds(self) -> int:
        """How many pairs were compared."""
        return len(self.difference.gains)

    @property
    def wins(self) -> int:
        """Seeds with which the arm is ahead."""
        return sum(gain > 0 for gain in self.difference.gains)


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
        class_names: Names of the classes.
    """

    recipe: dict[str, Any]
    dataset: str
    metrics: tuple[str, ...]
    runs: list[ArmResult]
    classes: int
    examples: tuple[int, int]
    class_names: tuple[str, ...] = ()

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
            class_names=prepared.classes,
        )

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the recipe's order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of_arm(self, arm: str) -> list[ArmResult]:
        """The runs of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    @property
    def measured(self) -> tuple[str, ...]:
        """The recipe's metrics, and the loss, which every run measures."""
        return tuple(dict.fromkeys((*self.metrics, "loss")))

    def compare(self, arm: str, other: str = "dense", metric: str | None = None) -> Comparison:
        """Compares two arms by the rule of `fpe_hf.comparing`.

        Args:
            arm: The arm.
            other: What it is compared with.
            metric: Name; by default the first.
        """
        metric = metric or self.metrics[0]
        ours, theirs = ({run.seed: run for run in self.of_arm(name)} for name in (arm, other))
        pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        values = [[run.metrics[metric] for run in runs] for runs in zip(*pairs, strict=True)]
        means = [statistics.fmean(own) for own in values]
        lower = metric in LOWER_IS_BETTER
        if lower or not all(map(math.isfinite, means)):
            half, by = _UNKNOWN
        else:
            half, by = _evaluation(metric, pairs, (means[0], means[1]), self.examples[1])
        difference = compare(
            *values, lower_is_better=lower, scale=None if lower else 1.0, evaluation=half
        )
        return Comparison(metric, arm, other, means[0], means[1], difference, by)

    def summary(self, metric: str | None = None) -> list[Summary]:
        """Every arm over the seeds.

        Args:
            metric: Name; by default the first.
        """
        metric = metric or self.metrics[0]
        summaries = []
        for arm in self.arms:
            runs = self.of_arm(arm)
            values = [run.metrics[metric] for run in runs]
            beside = self.compare(arm, metric=metric)
            summaries.append(
                Summary(
                    arm=arm,
                    mean=statistics.fmean(values),
                    std=_spread(values),
                    values=values,
                    gain=beside.gain,
                    gain_ci95=None if arm == "dense" else beside.difference.half_width,
                    verdict=None if arm == "dense" else beside.word,
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
            runs=[ArmResult.from_dict(run) for run in content["runs"]],
            examples=tuple(content["examples"]),
            class_names=tuple(content.get("class_names", ())),
        )


_Evaluation = tuple[float | None, Literal["examples", "bound", "unknown"]]
_UNKNOWN: _Evaluation = None, "unknown"


def _evaluation(
    metric: str,
    pairs: list[tuple[ArmResult, ArmResult]],
    means: tuple[float, float],
    examples: int,
) -> _Evaluation:
    """What the evaluation set implies for a share, and what that goes by."""
    if metric == "accuracy":
        right = [[run.outcomes.right() for run in pair if run.outcomes] for pair in pairs]
        if len({len(one) for pair in right for one in pair}) == 1 and all(
            len(pair) == len(means) for pair in right
        ):
            ours, theirs = zip(*right, strict=True)
            return paired_half_width(np.stack(ours), np.stack(theirs)), "examples"
    if not examples or not all(0 <= mean <= 1 for mean in means):
        return _UNKNOWN
    return binomial_half_width(*means, examples), "bound"


def _spread(values: list[float]) -> float:
    """Standard deviation; 0 for a single value, NaN if one is not finite."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def show(metric: str, value: float) -> str:
    """A value in the unit people read: shares in percent."""
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{value:.2%}"
