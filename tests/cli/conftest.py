"""Saved models to run the command line on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.damage import CONFIG, DAMAGES, WEIGHTS
from cli.running import contents, fpe_hf
from tiny_models import tiny_model

COMPANIONS = (
    "tokenizer.json",
    "vocab.txt",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer.py",
    "LICENSE",
)
STRANGERS = ("README.md", ".env", "training_args.bin", "model.onnx")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dense ViT, with files that belong to it and files that do not."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    tiny_model("vit").save_pretrained(folder)
    for name in (*COMPANIONS, *STRANGERS):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="session")
def widened(dense: Path) -> Path:
    """The same model widened in the `block` layout, which stores indices."""
    folder = dense.with_name("widened")
    result = fpe_hf("widen", dense, "--out", folder, "--layout", "block", "--tile-size", 16)
    assert result.code == 0, result
    return folder


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request: pytest.FixtureRequest, widened: Path, tmp_path: Path) -> tuple[Path, str]:
    """A damaged copy of the widened model, and what must be said about it."""
    folder = tmp_path / "damaged"
    shutil.copytree(widened, folder)
    request.param(folder)
    return folder, DAMAGES[request.param]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A saved model in the way. It must survive the test, with nothing left beside it."""
    folder = tmp_path / "out" / "old"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_bytes(b"{}")
    (folder / WEIGHTS).write_bytes(b"weights")
    before = contents(folder.parent)
    yield folder
    assert contents(folder.parent) == before
    assert list(folder.parent.iterdir()) == [folder]
