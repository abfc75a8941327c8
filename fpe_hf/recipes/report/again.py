"""Writes the report of a folder from what the run left there, without training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ...errors import RecipeError
from ..checkpoints import write_json
from ..results import RESULTS, Results
from .environment import environment
from .latency import Latency, Timing
from .page import HTML, write_report
from .sweep import read_points, write_sweep

MEASURED = "measured.json"
_BROKEN = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def keep_measured(folder: Path, latency: Latency) -> None:
    """Keeps what only the process that ran a recipe knows: its machine, and how fast that is.

    Args:
        folder: Of the run.
        latency: What was measured at its end.
    """
    write_json(folder / MEASURED, {"environment": environment(), "latency": asdict(latency)})


def report_again(folder: Path) -> Path:
    """Writes the report of a finished run, or of a sweep; an earlier one is replaced.

    Args:
        folder: `output.folder` of the run or sweep.

    Returns:
        The HTML file.

    Raises:
        RecipeError: The folder holds no results, or others than a run writes.
    """
    try:
        if not (folder / RESULTS).is_file() and (points := read_points(folder)):
            return write_sweep(points, folder)
    except _BROKEN as error:
        raise _broken(folder, error) from error
    if not (folder / RESULTS).is_file():
        raise RecipeError(
            f"{folder} holds no {RESULTS}: name the folder of a finished run, or let it finish "
            "with fpe-hf run RECIPE --resume."
        )
    latency = made_with = None
    try:
        results = Results.read(folder)
        if (folder / MEASURED).is_file():
            kept = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
            made_with = {str(name): str(value) for name, value in kept["environment"].items()}
            timings = tuple(
                Timing(own["examples"], tuple(own["dense"]), tuple(own["widened"]))
                for own in kept["latency"]["timings"]
            )
            latency = Latency(**{**kept["latency"], "timings": timings})
    except _BROKEN as error:
        raise _broken(folder, error) from error
    write_report(results, folder, latency, made_with)
    return folder / HTML


def _broken(folder: Path, error: Exception) -> RecipeError:
    return RecipeError(
        f"{RESULTS} or another file in {folder} is not what a run writes ({error!r}): run the "
        "recipe again."
    )
