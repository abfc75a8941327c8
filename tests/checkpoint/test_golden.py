"""Folders that earlier versions saved load for ever, with the outputs that they had then.

`golden/v1` was saved in November 2026, before indices became int32: tiny models of the families
named, with random weights. `golden/v2` is of the first version with learned splits and budgets,
`golden/v3` of the first in which blocks share an entry of the plan.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fpe_hf
from fpe_hf.checkpoint.validate import validate_checkpoint

FOLDERS = sorted(path for path in (Path(__file__).parent / "golden").glob("*/*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_folder_loads_and_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    assert validate_checkpoint(folder).blocks
    case = load_file(folder / "expected.safetensors")
    inputs = {n.removeprefix("input."): t for n, t in case.items() if n.startswith("input.")}
    tolerance = 1e-5 if case["output"].dtype == torch.float32 else 3e-2
    model = fpe_hf.from_pretrained(folder).eval()
    found = model(**inputs)[0]
    torch.testing.assert_close(found, case["output"], rtol=tolerance, atol=tolerance)
    fpe_hf.audit(model).raise_for_breach(allow_open=True)
    model.save_pretrained(tmp_path)
    assert torch.equal(fpe_hf.from_pretrained(tmp_path).eval()(**inputs)[0], found)


def test_there_are_such_folders() -> None:
    assert len(FOLDERS) >= 20
