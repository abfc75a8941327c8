"""What is checked is what is loaded: one way to read a folder, or none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fpe_hf
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError
from tiny_models import tiny_model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READERS = pytest.mark.parametrize("read", [validate_checkpoint, fpe_hf.from_pretrained])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file, in shards, and in a variant."""
    place = tmp_path_factory.mktemp("files")
    model = fpe_hf.widen(tiny_model("bert_classifier"), layout="block")
    model.save_pretrained(place / "single")
    model.save_pretrained(place / "shards", max_shard_size="10KB")
    model.save_pretrained(place / "variant", variant="fp16")
    model.save_pretrained(place / "both", variant="fp16", max_shard_size="10KB")
    return place


@pytest.fixture
def folder(request: pytest.FixtureRequest, originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / request.param, tmp_path / "model"))


def reconfigure(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


in_one_file = pytest.mark.parametrize("folder", ["single"], indirect=True)
in_shards = pytest.mark.parametrize("folder", ["shards"], indirect=True)


@READERS
@in_shards
def test_an_index_beside_a_single_file(read: Any, folder: Path, originals: Path) -> None:
    shutil.copy(originals / "single" / SINGLE, folder)
    with pytest.raises(CheckpointError, match="holds both"):
        read(folder)


@READERS
@in_one_file
@pytest.mark.parametrize("key", ["transformers_weights", "configuration_files"])
def test_a_config_that_leads_to_other_files(key: str, read: Any, folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "other.safetensors")
    reconfigure(folder, **{key: {"transformers_weights": "other.safetensors"}.get(key, [])})
    with pytest.raises(CheckpointError, match=key):
        read(folder)


@READERS
@in_one_file
def test_an_adapter_that_leads_to_another_model(read: Any, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(CheckpointError, match="adapter_config"):
        read(folder)


@READERS
@in_shards
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_two_keys_for_one_tensor(prefix: str, read: Any, folder: Path) -> None:
    """The second one in a shard of its own, under its own name or that of the base model."""
    name = "encoder.layer.1.intermediate.dense.weight"
    index = json.loads((folder / INDEX).read_text())
    shard = load_file(folder / index["weight_map"]["bert." + name])
    key = prefix + name
    save_file({key: shard["bert." + name] + 1}, folder / "zz.safetensors", {"format": "pt"})
    index["weight_map"][key if prefix == "" else "more"] = "zz.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"are the same tensor|is in two files"):
        read(folder)


@READERS
@in_one_file
def test_checksums_are_required(read: Any, folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    name = next(name for name in tensors if name.endswith("checksum"))
    tensors[name].zero_()
    tensors[name.replace("checksum", "weight")].view(-1)[0] = 1e4
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    if read is fpe_hf.from_pretrained:  # the first of its checks reads no numbers
        read = type(tiny_model("bert_classifier")).from_pretrained
    with pytest.raises(CheckpointError, match="damaged"):
        read(folder)


@in_one_file
def test_weights_that_nobody_has_summed_load_but_are_not_valid(folder: Path) -> None:
    """As FSDP saves them, from parts."""
    model = fpe_hf.from_pretrained(folder)
    tensors = load_file(folder / SINGLE)
    for name, layer in fpe_hf.modules.fpe_layers(model):
        tensors[f"{name}.checksum"] = torch.tensor(layer.unsummed)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no checksum.*save_pretrained"):
        validate_checkpoint(folder)
    fpe_hf.from_pretrained(folder).save_pretrained(folder)
    validate_checkpoint(folder)


@pytest.mark.parametrize("folder", ["variant", "both"], indirect=True)
def test_a_variant(folder: Path) -> None:
    report = validate_checkpoint(folder, variant="fp16")
    assert all("fp16" in file.name for file in report.files)
    fpe_hf.from_pretrained(folder, variant="fp16")
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        validate_checkpoint(folder)
    file = report.files[-1]
    file.write_bytes(file.read_bytes()[:-1])
    for read in (validate_checkpoint, fpe_hf.from_pretrained):
        with pytest.raises(CheckpointError, match="broken or truncated"):
            read(folder, variant="fp16")


@READERS
@pytest.mark.parametrize("folder", ["single", "shards"], indirect=True)
@pytest.mark.parametrize("name", ["config.json", INDEX, SINGLE, "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_can_be_read_for_ever(kind: str, name: str, read: Any, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no regular file"):
        read(folder)


@READERS
@in_one_file
def test_a_config_larger_than_any(read: Any, folder: Path) -> None:
    os.truncate(folder / "config.json", 2**27)
    with pytest.raises(CheckpointError, match="134,217,728 bytes; accepted"):
        read(folder)
