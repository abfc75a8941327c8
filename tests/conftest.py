"""Settings that all tests share."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per pytest worker


def _interpret_kernels() -> None:
    """Has Triton's interpreter stand in for a GPU where there is none.

    It does so if the variable is set when the kernels, and Triton's own, are defined: now, before
    torch._dynamo imports Triton.
    """
    import torch

    if find_spec("triton") is None or torch.cuda.is_available():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for kernels in ("triton_block", "triton_element"):
            importlib.import_module(f"fpe_hf.kernels.{kernels}")


_interpret_kernels()
settings.register_profile(
    "fpe_hf",
    deadline=None,
    max_examples=30,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fpe_hf")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random weights, alone or among others."""
    import torch

    torch.manual_seed(0)
