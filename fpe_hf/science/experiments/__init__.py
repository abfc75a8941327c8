"""One module per reproduction; each has a function `run(full) -> Report`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ..report import Report

NAMES = (
    "boolean-table",
    "boolean-sweeps",
    "metrics-vs-gain",
    "controls",
    "theory",
    "embeddings",
    "fashion-mnist",
    "deep-mlp",
    "cnn",
    "robustness",
    "interpretability",
    "learned-splits",
)

LONG = ("learned-splits",)
"""Those that keep single trainings, and so go on where they were stopped."""


def run_experiment(
    name: str, *, full: bool = False, rows: Path | None = None, parts: Sequence[str] = ()
) -> Report:
    """Runs a reproduction.

    Args:
        name: One of `NAMES`.
        full: More seeds and settings.
        rows: Folder of finished trainings, for those in `LONG`.
        parts: The parts to run, of those in `LONG`; by default all.

    Raises:
        ConfigError: There is no such reproduction, or it has no such part.
        MissingDataError: It needs data that are not on this machine.
    """
    if name not in NAMES:
        raise ConfigError(
            f"{name!r} is not a reproduction; accepted: {', '.join(NAMES)}."
            f"{did_you_mean(name, NAMES)}"
        )
    if parts and name not in LONG:
        raise ConfigError(f"{name} has no parts; those that have: {', '.join(LONG)}.")
    more: dict[str, Any] = {"rows": rows, "parts": parts} if name in LONG else {}
    module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
    start, cpu_start = time.perf_counter(), time.process_time()
    report: Report = module.run(full, **more)
    report.seconds = time.perf_counter() - start
    report.cpu_seconds = time.process_time() - cpu_start
    return report
