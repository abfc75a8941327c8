from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from fpe_hf.errors import MissingDataError
from fpe_hf.science.tasks import heads
from fpe_hf.science.tasks.heads import descriptions, section_embeddings

LISTING = "\n\n".join(
    [
        *(f"Package: p{i}\nSection: contrib/games\nDescription: game {i}\n more" for i in range(4)),
        *(f"Package: q{i}\nSection: libs\nDescription: library {i}" for i in range(5)),
        "Package: r\nSection: rare\nDescription: alone",
        "Package: again\nSection: libs\nDescription: library 0",
        "Package: none\nSection: libs",
    ]
)


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, LISTING)

    monkeypatch.setattr(heads.shutil, "which", lambda name: name)
    monkeypatch.setattr(heads.subprocess, "run", run)
    monkeypatch.setattr(heads, "_FEWEST", 3)


@pytest.mark.usefixtures("apt")
def test_descriptions_and_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    games = [(f"game {i}", "games") for i in range(4)]
    assert descriptions() == games + [(f"library {i}", "libs") for i in range(5)]
    monkeypatch.setattr(heads, "_FEWEST", 9)
    with pytest.raises(MissingDataError, match="apt-get update"):
        descriptions()


def test_without_apt_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads.shutil, "which", lambda name: None)
    with pytest.raises(MissingDataError, match="apt-cache"):
        descriptions()


@pytest.mark.usefixtures("apt")
def test_embeddings_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.tensor([[float(text[-1]), float("game" in text)] for text in texts])

    monkeypatch.setattr(heads, "embed", embed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    found = section_embeddings.__wrapped__()
    again = section_embeddings.__wrapped__()
    assert len(calls) == 1
    assert found.names == ("games", "libs")
    assert (len(found.y), len(found.test_y)) == (8, 1)
    assert torch.equal(found.x, again.x)
    assert torch.equal(found.x[:, 1] > 0, found.y == 0)  # a feature and its class stay together
