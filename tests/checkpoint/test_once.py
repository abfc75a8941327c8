"""Loading parses a plan once, builds one skeleton, and reads the files once to check them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors
import transformers
from transformers import BertModel

import fpe_hf
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.layers import FPELayer
from fpe_hf.planning import BlockSpec
from tiny_models import tiny_model

BLOCKS, LAYERS = 2, 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often blocks were parsed, layers and models were built, and files were opened by us."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(BlockSpec, "from_dict", "parsed")
    count(FPELayer, "__init__", "layers")
    count(transformers.BertModel, "__init__", "models")
    count(safetensors, "safe_open", "opened")  # transformers has it by another name
    return counted


def test_transformers_loads_it_once(folder: Path, counts: Counter[str]) -> None:
    BertModel.from_pretrained(folder)
    assert counts == {"parsed": BLOCKS, "layers": LAYERS, "models": 1, "opened": 1}


def test_fpe_hf_loads_it_once(folder: Path, counts: Counter[str]) -> None:
    fpe_hf.from_pretrained(folder)
    # The number of tensors bounds what may be built, so it is read before.
    assert counts == {"parsed": BLOCKS, "layers": LAYERS, "models": 1, "opened": 2}


def test_validation_reads_it_once(folder: Path, counts: Counter[str]) -> None:
    validate_checkpoint(folder)
    assert counts == {"parsed": BLOCKS, "layers": LAYERS, "models": 1, "opened": 1}


def test_widening_and_saving_parse_nothing(tmp_path: Path, counts: Counter[str]) -> None:
    counts.clear()
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path / "again")
    assert counts["parsed"] == 0
    assert counts["layers"] == LAYERS
