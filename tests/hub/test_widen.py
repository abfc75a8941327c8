"""`fpe-hf widen` with a model on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli.running import contents, fpe_hf
from hub.server import Hub
from hub.store import Blob, Repo
from tiny_models import tiny_model

NAME = "user/name"


def put(hub: Hub, folder: Path, ref: str) -> None:
    """Makes the files of a folder a commit of the repository, without asking a client."""
    repo = hub.repos.setdefault(NAME, Repo(NAME, "user"))
    large = (".safetensors", ".bin")
    repo.add(
        ref, "model", {name: Blob(c, name.endswith(large)) for name, c in contents(folder).items()}
    )


@pytest.mark.parametrize("size", ["1GB", "40KB"])
def test_is_that_of_the_same_files_in_a_folder(hub: Hub, size: str, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    tiny_model("vit").save_pretrained(dense, max_shard_size=size)
    (dense / "preprocessor_config.json").write_text("{}")
    (dense / "pytorch_model.bin").write_bytes(b"not to be read")
    put(hub, dense, "v2")
    result = fpe_hf("widen", NAME, "--out", tmp_path / "out", "--revision", "v2")
    assert result.code == 0, result
    assert fpe_hf("widen", dense, "--out", tmp_path / "expected").code == 0
    found, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "expected").keys()
    assert not list((tmp_path / "cache").rglob("*.bin"))
