"""Results that a training run left beside its model, for the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import get_args

from ..comparing import Word
from ..errors import CheckpointError

RESULTS = "results.json"


@dataclass(frozen=True)
class Evaluation:
    """How one arm of a comparison did.

    Attributes:
        arm: Name of the arm, such as `"dense"` or `"fpe"`.
        metric: Name of the metric.
        value: Its value, a mean if there are several seeds.
        dataset: What it was measured on.
        seeds: Number of seeds.
        spread: Standard deviation over seeds.
        nonzeros: Non-zero parameters of the arm.
        verdict: What can be said of it beside the dense arm (see `fpe_hf.comparing`).
    """

    arm: str
    metric: str
    value: float
    dataset: str
    seeds: int | None = None
    spread: float | None = None
    nonzeros: int | None = None
    verdict: str | None = None


def read_results(folder: Path) -> tuple[Evaluation, ...]:
    """Reads the `results.json` of a folder; without one there are no evaluations.

    The file is `{"dataset": ..., "metric": ..., "arms": {name: {"mean": ..., "std": ...,
    "values": [...], "nonzeros": ..., "verdict": ...}}}`; of an arm only `mean` is required. Other
    keys are ignored.

    Raises:
        CheckpointError: The file is there and is something else.
    """
    file = folder / RESULTS
    if not file.is_file():
        return ()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from error
    fields = _object(content, f"{file}")
    dataset, metric = (_text(fields, name, str(file)) for name in ("dataset", "metric"))
    arms = _object(fields.get("arms"), f"'arms' in {file}")
    return tuple(_evaluation(str(file), dataset, metric, name, arm) for name, arm in arms.items())


def _evaluation(file: str, dataset: str, metric: str, name: str, arm: object) -> Evaluation:
    where = f"arm {name!r} in {file}"
    fields = _object(arm, where)
    mean = _number(fields, "mean", where)
    if mean is None:
        raise CheckpointError(f"{where} has no 'mean'.")
    values, nonzeros = fields.get("values"), fields.get("nonzeros")
    verdict = fields.get("verdict")
    if verdict is not None and verdict not in get_args(Word):
        raise CheckpointError(
            f"verdict={verdict!r} of {where} must be one of {', '.join(get_args(Word))}."
        )
    return Evaluation(
        arm=name,
        metric=metric,
        value=mean,
        dataset=dataset,
        seeds=len(values) if isinstance(values, list) else None,
        spread=_number(fields, "std", where),
        nonzeros=nonzeros if type(nonzeros) is int else None,
        verdict=verdict if isinstance(verdict, str) else None,
    )


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, not {type(value).__name__}.")
    return value


def _text(fields: Mapping[str, object], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise CheckpointError(f"{name}={value!r} in {where} must be a text.")
    return value


def _number(fields: Mapping[str, object], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not isfinite(value):  # type: ignore[arg-type]
        raise CheckpointError(f"{name}={value!r} of {where} must be a number.")
    return float(value)  # type: ignore[arg-type]
