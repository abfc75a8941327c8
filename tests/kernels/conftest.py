"""The device that kernels for GPUs are tested on."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which the registered operators run Triton kernels during a test."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed.")
    from fpe_hf.kernels import gpu_ops

    def fail(*args: object) -> None:
        raise AssertionError("A kernel failed, see the exception before this one.")

    monkeypatch.setattr(gpu_ops, "_runs_triton", lambda tensor: True)
    monkeypatch.setattr(gpu_ops._logger, "warning", fail)
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read again when a kernel is launched
    return "cpu"


@pytest.fixture
def cuda() -> str:
    """A real GPU."""
    if not torch.cuda.is_available():
        pytest.skip("There is no CUDA device.")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("The kernels need compute capability 8.0.")
    return "cuda"
