"""Settings that all tests share."""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per pytest worker


settings.register_profile(
    "fpe_hf",
    deadline=None,
    max_examples=30,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fpe_hf")


@pytest.fixture(autouse=True)
def _audible() -> None:
    """Commands that were run in this process may have silenced the package."""
    logging.getLogger("fpe_hf").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random weights, alone or among others."""
    import torch

    torch.manual_seed(0)
