"""A Hub on loopback, and this process as its client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers import BertTokenizerFast

import fpe_hf
from hub.server import Hub, running_hub
from tiny_models import tiny_model, tiny_tokenizer

LONGEST_WAIT = 0.01
PATIENCE = 600
"""Seconds to wait for a reply: no test's verdict may depend on how busy the machine is."""


@pytest.fixture
def server() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub, with this process connected to it as `user`, an empty cache and no long waits.

    huggingface_hub reads its settings when it is imported; `hub.processes` sets them before that.
    """
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_ETAG_TIMEOUT": PATIENCE,
        "HF_HUB_DOWNLOAD_TIMEOUT": PATIENCE,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, LONGEST_WAIT)))
    yield server
    close_session()


@pytest.fixture(scope="session")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a widened model, with files that belong on the Hub and files that do not."""
    folder = tmp_path_factory.mktemp("hub") / "widened"
    fpe_hf.widen(tiny_model("bert_masked_lm"), layout="block", tile_size=16).save_pretrained(folder)
    for name in ("tokenizer.json", "recipe.yaml", "report.png", *LEFT_OUT):
        (folder / name).write_text("{}")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def tokenizer() -> BertTokenizerFast:
    return tiny_tokenizer()


LEFT_OUT = (".env", "modeling.py", "optimizer.pt", "pytorch_model.bin", "training_args.bin")
"""Files of the widened folder that must not reach the Hub."""
