"""A few kilobytes that claim to be a giant: refused soon, with next to no memory taken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fpe_hf
from fpe_hf.checkpoint.limits import check_backing
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError
from tiny_models import tiny_model
from tools.fuzz.campaign import limited_memory

MEMORY = 2**29
SECONDS = 5.0
Change = Callable[[dict[str, Any]], object]


def giant_tiles(config: dict[str, Any]) -> None:
    """A billion tiles of one parent each, within the budget that goes with them."""
    parents = 10**9
    config["intermediate_size"] = parents
    for block in config["quantization_config"]["blocks"]:
        inputs, outputs = sum(block["child_inputs"]), sum(block["child_outputs"])
        block |= {"parents": parents, "tile_size": 1}
        block["parent_nonzeros"] = parents * (inputs + outputs + 1) + block["out_features"]


CLAIMS: dict[str, tuple[str, Change]] = {
    "hidden size": ("bert_classifier", lambda c: c.update(hidden_size=10**6)),
    "vocabulary": ("bert_classifier", lambda c: c.update(vocab_size=10**10)),
    "positions": ("bert_classifier", lambda c: c.update(max_position_embeddings=10**10)),
    "causal mask": ("gpt2", lambda c: c.update(n_positions=10**6)),
    "layers": ("bert_classifier", lambda c: c.update(num_hidden_layers=10**9)),
    "many layers": ("bert_classifier", lambda c: c.update(num_hidden_layers=10**6)),
    "labels": ("bert_classifier", lambda c: c.update(num_labels=10**10)),
    "tiles": ("bert_classifier", giant_tiles),
    "nested": ("clip", lambda c: c["vision_config"].update(num_hidden_layers=10**9)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny widened model of each family."""
    place = tmp_path_factory.mktemp("claims")
    for family in ("bert_classifier", "gpt2", "clip"):
        model = fpe_hf.widen(tiny_model(family), layout="block", tile_size=16)
        model.save_pretrained(place / family)
        fpe_hf.from_pretrained(place / family)  # what is slow the first time
    return {folder.name: folder for folder in place.iterdir()}


@pytest.mark.parametrize("read", [validate_checkpoint, fpe_hf.from_pretrained])
@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_a_config(
    claim: str, read: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    family, change = CLAIMS[claim]
    for file in folders[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_refused(read, tmp_path)


@pytest.mark.parametrize("read", [validate_checkpoint, fpe_hf.from_pretrained])
@pytest.mark.parametrize("length", [10**9, 2**62, 2**64 - 1])
def test_a_header_that_claims_to_be_long(
    length: int, read: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["bert_classifier"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    check_refused(read, tmp_path)


def test_what_no_file_holds_must_stay_small() -> None:
    """New heads and tables of positions are made in loading, whatever size a config gives them."""
    model: Any = nn.Sequential(nn.Linear(2**14, 2**14, device="meta"))  # 1 GiB and a bias
    check_backing(model, ("0.weight",), stored=0)
    check_backing(model, (), stored=2**17)
    with pytest.raises(
        CheckpointError, match=r"1,073,807,360 bytes .* most of them for '0.weight'"
    ):
        check_backing(model, (), stored=0)


def check_refused(read: Any, folder: Path) -> None:
    start = time.perf_counter()
    with limited_memory(MEMORY), pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "MemoryError" not in str(caught.value)
    assert "not enough memory" not in str(caught.value)
    assert time.perf_counter() - start < SECONDS
