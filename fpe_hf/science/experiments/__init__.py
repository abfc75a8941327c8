"""One module per reproduction; each has a function `run(full) -> Report`."""

from __future__ import annotations

import importlib
import time

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
)


def run_experiment(name: str, *, full: bool = False) -> Report:
    """Runs a reproduction.

    Args:
        name: One of `NAMES`.
        full: More seeds and settings.

    Raises:
        ConfigError: There is no such reproduction.
        MissingDataError: It needs data that are not on this machine.
    """
    if name not in NAMES:
        raise ConfigError(
            f"{name!r} is not a reproduction; accepted: {', '.join(NAMES)}."
            f"{did_you_mean(name, NAMES)}"
        )
    module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
    start, cpu_start = time.perf_counter(), time.process_time()
    report: Report = module.run(full)
    report.seconds = time.perf_counter() - start
    report.cpu_seconds = time.process_time() - cpu_start
    return report
