from __future__ import annotations

import platform

import torch

import fpe_hf
from fpe_hf.recipes.report.environment import environment


def test_what_a_reader_needs_to_run_it_again() -> None:
    found = environment()
    assert found["fpe_hf"] == fpe_hf.__version__
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert {"transformers", "accelerate"} < found.keys()
    assert found["device"].startswith(torch.empty(0).device.type) or torch.cuda.is_available()
    assert found["threads per process"] == str(torch.get_num_threads())
