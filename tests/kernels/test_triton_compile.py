"""The kernels compile for the GPUs that they are meant for, wherever Triton is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024}
"""Bytes of shared memory that a program may use, by compute capability."""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed.")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_compiles(capability: str, dtype: str) -> None:
    program = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, "-W", "ignore", str(program), capability, dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = [line.split() for line in result.stdout.splitlines()]
    assert {name for name, _, _ in kernels} == {
        "_collect_kernel",
        "_down_kernel",
        "_gather_kernel",
        "_scatter_kernel",
        "_up_kernel",
        "_weight_kernel",
    }
    for name, _, shared in kernels:
        assert int(shared) <= SHARED_MEMORY[capability], name
