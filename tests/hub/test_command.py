"""`fpe-hf push` and `fpe-hf validate` with a Hub."""

from __future__ import annotations

from pathlib import Path

from cli.running import assert_refused, fpe_hf
from hub.server import Hub

NAME = "user/name"


def test_push_then_validate(hub: Hub, widened: Path) -> None:
    message = ("--message", "First version")
    pushed = fpe_hf("push", widened, NAME, "--private", "--token", "hf_writer", *message)
    assert pushed.code == 0, pushed
    head = hub.repos[NAME].history()[0]
    assert pushed.out == (
        f"Pushed 7 files: {hub.url}/{NAME}/commit/{head.oid}\n"
        "Left out: .env, checkpoint-1, modeling.py, optimizer.pt, pytorch_model.bin, "
        "training_args.bin\n"
    )
    assert head.title == "First version"
    assert hub.repos[NAME].private

    where = f"OK: {NAME} at {head.oid} holds a widened BertForMaskedLM (blocks: 2, tensors: "
    checked = fpe_hf("validate", NAME)
    assert checked.out.startswith(where)
    assert "Headers only: no index and no checksum was checked." in checked.out
    full = fpe_hf("validate", NAME, "--full", "--revision", head.oid, "--token", "hf_writer")
    assert full.out.startswith(where)
    assert "Headers only" not in full.out
    assert_refused(fpe_hf("validate", NAME, "--token", "hf_reader"), "404 (Repository not found)")
    assert_refused(fpe_hf("validate", NAME, "--revision", "v2"), "There is no such branch")


def test_a_pull_request_is_shown(hub: Hub, widened: Path) -> None:
    result = fpe_hf("push", widened, NAME, "--create-pr")
    assert f"{hub.url}/{NAME}/discussions/1" in result.out


def test_what_is_removed_is_said(hub: Hub, widened: Path) -> None:
    fpe_hf("push", widened, NAME)
    dense = fpe_hf("push", widened, NAME, "--dense", "--revision", "dense")
    assert dense.code == 0, dense
    assert "Removed there" not in dense.out
    repo = hub.repos[NAME]
    tree = repo.history()[0].tree
    repo.add("main", "", {**tree, "model-00001-of-00002.safetensors": tree["model.safetensors"]})
    assert "Removed there: model-00001-of-00002.safetensors\n" in fpe_hf("push", widened, NAME).out


def test_a_model_of_strange_files_is_named(hub: Hub, widened: Path) -> None:
    from hub.store import Blob

    fpe_hf("push", widened, NAME)
    tree = hub.repos[NAME].history()[0].tree
    more = {"pytorch_model.bin": Blob(b"", lfs=True), "modeling.py": Blob(b"", lfs=False)}
    hub.repos[NAME].add("main", "", {**tree, **more})
    result = fpe_hf("validate", NAME)
    assert "Never read in loading: modeling.py, pytorch_model.bin\n" in result.out
