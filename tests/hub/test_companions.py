"""What goes along with a model that is widened, from a folder or the Hub."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from cli.running import contents, fpe_hf
from fpe_hf.hub import copy_companions
from hub.server import Hub
from hub.store import Blob, Repo
from tiny_models import tiny_model

NAME = "user/name"
BELONG = (
    "tokenizer.json",
    "chat_template.jinja",
    "spiece.model",
    "tokenization_own.py",
    "LICENSE",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "3_Dense/pytorch_model.bin",
    "additional_chat_templates/tool.jinja",
    "speaker_embeddings/v1.npy",
)
OWN = (
    "config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "model.onnx",
    "openvino_model.xml",
    "model-q4.gguf",
    "training_args.bin",
    "optimizer.pt",
    "adapter_config.json",
    "2_Dense/pytorch_model.bin",
    ".git/config",
    ".cache/huggingface/x.json",
    "__pycache__/x.pyc",
)
MISSED = {
    "README.md": "README.md",
    "onnx/": "onnx/model.onnx",
    "openvino/": "openvino/openvino_model.xml",
    "checkpoint-5/": "checkpoint-5/model.safetensors",
    "original/": "original/consolidated.00.pth",
}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "source", *BELONG, *OWN, *MISSED.values(), "onnx/tokenizer.json")
    paths = ("", "1_Pooling", "2_Dense", "3_Dense", "../elsewhere", 7)
    (folder / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    return folder


def put(hub: Hub, folder: Path) -> None:
    repo = hub.repos.setdefault(NAME, Repo(NAME, "user"))
    repo.add("main", "model", {name: Blob(c, False) for name, c in contents(folder).items()})


def test_all_but_weights_goes_along_and_what_is_missed_is_named(
    source: Path, tmp_path: Path
) -> None:
    found = copy_companions(source, tmp_path / "out")
    assert sorted(found.copied) == sorted(BELONG)
    assert set(found.left) == set(MISSED)
    before = contents(source)
    assert contents(tmp_path / "out") == {name: before[name] for name in BELONG}


def test_the_same_goes_along_from_the_hub_and_no_more_is_downloaded(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    put(hub, source)
    expected = copy_companions(source, tmp_path / "expected")
    found = copy_companions(NAME, tmp_path / "out", revision="main")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert set(found.left) == set(expected.left)
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_without_the_hub_what_its_cache_has_goes_along(
    hub: Hub,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(hub, source)
    copy_companions(NAME, tmp_path / "expected")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "fpe_hf"):
        copy_companions(NAME, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert "What goes along is what the cache has" in caplog.text


def test_what_is_there_already_stays(source: Path, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("own")
    assert "tokenizer.json" not in copy_companions(source, tmp_path / "out").copied
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "own"


def test_links_out_of_the_folder_pipes_and_huge_files_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fpe_hf.hub.companions.MAX_BYTES", 100)
    source = fill(tmp_path / "source", "vocab.txt", "assets/notes.txt")
    fill(tmp_path, "secret.txt", "elsewhere/file.txt")
    (source / "link.txt").symlink_to(tmp_path / "secret.txt")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "same.txt").symlink_to("vocab.txt")
    (source / "huge.txt").write_text("x" * 101)
    os.mkfifo(source / "assets" / "pipe")
    found = copy_companions(source, tmp_path / "out")
    assert set(found.copied) == {"vocab.txt", "same.txt", "assets/notes.txt"}
    assert set(found.left) == {"link.txt", "linked", "huge.txt"}
    assert not (tmp_path / "out" / "same.txt").is_symlink()


def test_a_folder_of_the_hubs_cache_holds_links(tmp_path: Path) -> None:
    cache = fill(tmp_path / "models--x", "blobs/a1", "snapshots/c0/.keep")
    snapshot = cache / "snapshots" / "c0"
    (snapshot / "tokenizer.json").symlink_to("../../blobs/a1")
    assert copy_companions(snapshot, tmp_path / "out").copied == ("tokenizer.json",)


@pytest.mark.parametrize("name", ["modules.json", "0_Transformer/model.safetensors"])
def test_pipes_among_the_modules_are_not_opened(name: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "0_Transformer/config.json", "modules.json")
    (source / "modules.json").write_text('[{"path": "0_Transformer"}]')
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    result = fpe_hf("widen", source, "--out", tmp_path / "out")
    assert result.code != 0
    assert "is no regular file" in " ".join(result.err.split())


def sentence_model(folder: Path, tokenizer: object) -> None:
    """A saved sentence-transformers model with a pooling and a normalising module."""
    library = pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tiny_model("bert").save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")  # type: ignore[attr-defined]
    encoder = Transformer(str(folder / "encoder"))
    modules = [encoder, Pooling(32, "mean"), Normalize()]
    library.SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))


@pytest.mark.parametrize("way", ["streamed", "whole", "old layout"])
def test_a_widened_sentence_encoder_still_pools_and_normalises(
    way: str, tokenizer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    sentence_model(tmp_path, tokenizer)
    source = tmp_path / "model"
    if way == "old layout":
        modules = json.loads((source / "modules.json").read_text())
        apart = {module["path"] for module in modules} | {"modules.json", "README.md"}
        files = [file for file in source.iterdir() if file.name not in apart]
        (source / "0_Transformer").mkdir()
        for file in files:
            if not file.name.startswith("config_sentence"):
                file.rename(source / "0_Transformer" / file.name)
        modules[0]["path"] = "0_Transformer"
        (source / "modules.json").write_text(json.dumps(modules))
    if way == "whole":
        monkeypatch.setattr("fpe_hf.streaming.widening.stock_files", _refuse)
    exact = ["--coupling", 1, "--fan-out", "partition"]
    result = fpe_hf("widen", source, "--out", tmp_path / "out", *exact)
    assert result.code == 0, result
    texts = ["the cat sat", "a mat"]
    before = SentenceTransformer(str(source), device="cpu").encode(texts)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = model.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, before, atol=1e-5)
    again = fpe_hf("widen", source, "--out", tmp_path / "out", "--overwrite")
    assert again.code == 0, again


def _refuse(*args: object) -> None:
    from fpe_hf.streaming.stock import NotStreamableError

    raise NotStreamableError("so that it is loaded as a whole")
