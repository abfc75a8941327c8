"""A metric by step, over the seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...comparing import half_width
from ..evaluation import LOWER_IS_BETTER
from ..results import ArmResult, Results


@dataclass(frozen=True)
class Curve:
    """Values by step.

    Attributes:
        steps: Steps at which every seed was evaluated.
        values: `[seeds, steps]`.
    """

    steps: tuple[int, ...]
    values: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Over the seeds, `[steps]`."""
        return np.asarray(self.values.mean(0))

    @property
    def span(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest seed, `[steps]` each."""
        return self.values.min(0), self.values.max(0)

    @property
    def half_width(self) -> NDArray[np.float64]:
        """Half of the 95 % interval of the mean over seeds, `[steps]`; 0 for a single seed."""
        return np.array([half_width(column) or 0.0 for column in self.values.T.tolist()])


def curve(results: Results, arm: str, metric: str) -> Curve | None:
    """A metric of an arm by step; `None` if it was not evaluated while it trained."""
    return _on_common_steps([_by_step(run, metric) for run in results.of_arm(arm)])


def gain_curve(results: Results, arm: str, metric: str) -> Curve | None:
    """How much better an arm is than the dense one with the same seed, by step."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    others = {run.seed: _by_step(run, metric) for run in results.of_arm("dense")}
    gains = []
    for run in results.of_arm(arm):
        theirs = others.get(run.seed, {})
        ours = _by_step(run, metric)
        gains.append({step: sign * (ours[step] - theirs[step]) for step in ours if step in theirs})
    return _on_common_steps(gains)


def split_step(results: Results) -> int | None:
    """The step at which the parent was split; `None` before training, or if it is not known."""
    at = (results.recipe.get("widen") or {}).get("at") or {}
    if at.get("step") is not None:
        return int(at["step"])
    train = results.recipe.get("train") or {}
    epochs = float(train.get("num_train_epochs", 3))  # the Trainer's default
    if at.get("epoch") is None or int(train.get("max_steps", -1)) > 0 or epochs <= 0:
        return None
    steps = results.of_arm("fpe")[0].steps
    return round(float(at["epoch"]) * steps / epochs)


def close_step(results: Results) -> int | None:
    """The step at which the open budget of `fpe` was closed; `None` if it never was open."""
    return results.of_arm("fpe")[0].closed or None


def _by_step(run: ArmResult, metric: str) -> dict[int, float]:
    return {int(entry["step"]): entry[metric] for entry in run.curve if metric in entry}


def _on_common_steps(series: list[dict[int, float]]) -> Curve | None:
    steps = sorted(set.intersection(*map(set, series))) if series else []
    if not steps:
        return None
    return Curve(tuple(steps), np.array([[values[step] for step in steps] for values in series]))
