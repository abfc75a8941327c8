"""Nothing in a checkpoint is run, unpickled or looked up outside the model."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

import fpe_hf
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError
from tiny_models import tiny_model

READERS = [
    AutoModelForSequenceClassification.from_pretrained,
    fpe_hf.from_pretrained,
    validate_checkpoint,
]
BLOCK = "bert.encoder.layer.0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fpe_hf.widen(tiny_model("bert_classifier")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that exists if someone's code has been run."""
    return tmp_path / "trap"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
def test_code_beside_a_model_is_not_run(read: Any, folder: Path, trap: Path) -> None:
    code = f"open({str(trap)!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    for name in ("modeling.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    auto_map = {
        "AutoConfig": "modeling.Config",
        "AutoModelForSequenceClassification": "modeling.Model",
    }
    change(folder, lambda config: config.update(auto_map=auto_map))
    assert type(read(folder)).__name__ in ("BertForSequenceClassification", "ValidationReport")
    assert not trap.exists()


class _Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_opened(name: str, read: Any, folder: Path, trap: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Trap(trap)))
    with pytest.raises(CheckpointError, match=r"safetensors"):
        read(folder)
    assert not trap.exists()


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
@pytest.mark.parametrize(
    "name",
    [
        f"{BLOCK}.__class__",
        f"{BLOCK}.intermediate.dense.weight.grad_fn",
        f"{BLOCK}.intermediate.dense.forward",
        "__init__.__globals__",
        "config.quantization_config",
        "../../model",
        "",
    ],
)
def test_names_are_names_of_modules_of_the_model(name: str, read: Any, folder: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        block = config["quantization_config"]["blocks"][0]
        assert block["name"] == BLOCK
        block["ups"] = [name]

    change(folder, rename)
    with pytest.raises(CheckpointError, match=r"does not (have|fit)"):
        read(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "a/b", "", "a\0", ".."])
def test_shards_are_files_of_the_folder(name: str, folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    for read in (fpe_hf.from_pretrained, validate_checkpoint):
        with pytest.raises(CheckpointError, match="which is not a file in the folder"):
            read(folder)
