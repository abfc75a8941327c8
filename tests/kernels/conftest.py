"""Where there is no GPU, Triton's interpreter stands in for one, if Triton is installed."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

import pytest
import torch

MODULES = ("fpe_hf.kernels.triton_block", "fpe_hf.kernels.triton_element")
_missing = ""

if find_spec("triton") is None:
    _missing = "Triton is not installed"
elif not torch.cuda.is_available():
    # Kernels are interpreted if the variable is set when they, and Triton's own, are defined:
    # here, while tests are collected and nobody has imported Triton yet.
    if "triton" in sys.modules:
        _missing = "Triton was imported before its interpreter could be chosen"
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            for name in MODULES:
                importlib.import_module(name)


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which the registered operators run Triton kernels during a test."""
    if _missing:
        pytest.skip(_missing)
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
