"""Checking a repository before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import fpe_hf
from cli.damage import truncate
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError
from fpe_hf.hub import HubError
from fpe_hf.hub.remote import validate_repo, write_hollow
from hub.server import Hub
from hub.store import Blob
from tiny_models import tiny_model

NAME = "user/name"


def upload(hub: Hub, folder: Path) -> str:
    """Puts a folder on the Hub as it is; returns the commit."""
    from hub.store import Repo

    repo = hub.repos.setdefault(NAME, Repo(NAME, "user"))
    files = [file for file in folder.iterdir() if file.is_file()]
    tree = {f.name: Blob(f.read_bytes(), lfs=f.suffix == ".safetensors") for f in files}
    return repo.add("main", "as it is", tree).oid


@pytest.mark.parametrize("numbers", [False, True])
def test_a_valid_repository(hub: Hub, widened: Path, numbers: bool) -> None:
    commit = upload(hub, widened)
    report = validate_repo(NAME, numbers=numbers)
    local = validate_checkpoint(widened)
    assert report.commit == commit
    assert report.checkpoint.model_class == "BertForMaskedLM"
    assert report.checkpoint.blocks == local.blocks
    assert (report.checkpoint.tensors, report.checkpoint.numbers) == (local.tensors, numbers)
    strangers = {"modeling.py", "optimizer.pt", "pytorch_model.bin", "training_args.bin"}
    assert set(report.never_read) == strangers
    ranged = hub.count("GET .*model.safetensors 206")
    whole = hub.count("GET .*model.safetensors 200")
    assert (ranged, whole) == ((0, 1) if numbers else (1, 0))


def test_only_headers_of_shards_are_fetched(hub: Hub, tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path, max_shard_size="20KB")
    upload(hub, tmp_path)
    report = validate_repo(NAME)
    assert len(report.checkpoint.files) == hub.count("GET .*-of-.* 206") > 1


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def claim_a_giant_header(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + content[8:])


def claim_more_neurons(folder: Path) -> None:
    change_config(folder, intermediate_size=10**9)


def lead_out_of_the_folder(folder: Path) -> None:
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    lose_weights: "model.safetensors is missing",
    lose_config: "config.json cannot be read",
    truncate: "broken or truncated",
    claim_a_giant_header: "broken or truncated: its header does not fit",
    claim_more_neurons: "does not fit",
    lead_out_of_the_folder: "'../model.safetensors', which is not a file in the folder",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(damage: object, hub: Hub, widened: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(widened, tmp_path / "damaged")
    damage(folder)  # type: ignore[operator]
    upload(hub, folder)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):  # type: ignore[index]
        validate_repo(NAME)


def test_changed_numbers_need_the_numbers(hub: Hub, widened: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(widened, tmp_path / "damaged")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    upload(hub, folder)
    assert validate_repo(NAME).checkpoint.tensors
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        validate_repo(NAME, numbers=True)


def test_a_config_that_is_too_large_is_not_fetched(hub: Hub, widened: Path) -> None:
    upload(hub, widened)
    tree = hub.repos[NAME].history()[0].tree
    hub.repos[NAME].add("main", "", {**tree, "config.json": Blob(b" " * (2**26 + 1), lfs=False)})
    with pytest.raises(CheckpointError, match=r"config\.json has 67,108,865 bytes"):
        validate_repo(NAME)
    assert hub.count("GET .*/config.json") == 0


def test_what_the_hub_refuses(hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"reading 'user/none' failed.*404.*Check the name"):
        validate_repo("user/none")
    upload(hub, widened)
    with pytest.raises(HubError, match="no such branch, tag or commit"):
        validate_repo(NAME, revision="v9")
    hub.repos[NAME].gated = True
    with pytest.raises(HubError, match=r"403.*Ask for access on its page"):
        validate_repo(NAME, token="hf_reader")
    hub.repos[NAME].private = True
    with pytest.raises(HubError, match="A private repository needs a token"):
        validate_repo(NAME, token="hf_reader")


def test_a_header_longer_than_the_first_read(tmp_path: Path) -> None:
    content = (300_000).to_bytes(8, "little") + bytes(range(256)) * 2000
    asked = []

    def read(first: int, last: int) -> bytes:
        asked.append((first, last))
        return content[first : last + 1]

    write_hollow(tmp_path / "a", len(content), read)
    written = (tmp_path / "a").read_bytes()
    assert written == content[:300_008] + bytes(len(content) - 300_008)
    assert asked == [(0, 99_999), (100_000, 300_007)]


@pytest.mark.parametrize("size", [0, 7, 8])
def test_a_file_too_short_for_its_header(size: int, tmp_path: Path) -> None:
    content = (1).to_bytes(8, "little")[:size]
    with pytest.raises(CheckpointError, match="its header does not fit"):
        write_hollow(tmp_path / "a", size, lambda first, last: content[first : last + 1])
