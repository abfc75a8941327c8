from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc brings the sanitizers")
def test_kernels_stay_within_their_memory() -> None:
    command = [sys.executable, "-m", "tools.sanitize", "--minutes", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("jobs") == 3  # with AVX-512, AVX2 and neither
