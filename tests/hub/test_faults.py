"""A Hub that fails: in the end the push is complete, or an error says what happened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import fpe_hf
from checkpoint.fresh import outputs_of
from cli.running import contents
from fpe_hf.errors import CheckpointError
from fpe_hf.hub import HubError
from hub.server import Hub
from tiny_models import tiny_inputs

NAME = "user/name"
STEPS = {
    "create": "POST /api/repos/create",
    "look": "GET /api/models/user/name",
    "card": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /storage/",
    "verify": "POST .*/lfs/verify",
    "commit": "POST .*/commit/",
}
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "headers": {"Retry-After": "3"}},
    "500": {"status": 500},
    "dropped connection": {"kind": "drop"},
    "slow": {"kind": "slow", "seconds": 0.1},
    "lost reply": {"kind": "lose_reply"},
}
PASSING = [
    *((step, "500") for step in STEPS),
    *((step, fault) for step in ("upload", "commit") for fault in FAULTS if fault != "500"),
]
LASTING = 10_000


def check_complete(hub: Hub, widened: Path) -> None:
    """The repository holds everything, in one commit."""
    repo = hub.repos[NAME]
    assert len(repo.history()) == 2
    assert repo.files()["model.safetensors"] == (widened / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "audit.json"} < set(repo.files())


@pytest.mark.parametrize(("step", "fault"), PASSING)
def test_what_passes_is_got_over(step: str, fault: str, hub: Hub, widened: Path) -> None:
    injected = hub.fail(STEPS[step], **FAULTS[fault])
    fpe_hf.push_to_hub(widened, NAME)
    assert injected.times == 0, "the fault has not happened"
    check_complete(hub, widened)


@pytest.mark.parametrize(
    ("step", "fault", "message"),
    [
        ("create", {"status": 500}, "answered 500"),
        ("batch", {"status": 503}, "answered 503"),
        ("upload", {"status": 500}, "answered 500"),
        ("upload", {"kind": "drop"}, "the connection broke"),
        ("upload", {"kind": "corrupt"}, r"400 \(the content does not match its sha256"),
        ("commit", {"status": 429, "headers": {"Retry-After": "1"}}, "answered 429"),
        ("commit", {"kind": "drop"}, "the connection broke"),
        ("commit", {"status": 403}, r"answered 403 \(as asked\)\. The token must have the right"),
    ],
)
def test_what_lasts_is_an_error_and_nothing_is_half_done(
    step: str, fault: dict[str, Any], message: str, hub: Hub, widened: Path
) -> None:
    before = contents(widened)
    hub.fail(STEPS[step], times=LASTING, **fault)
    with pytest.raises(HubError, match=f"pushing to '{NAME}' failed.*{message}"):
        fpe_hf.push_to_hub(widened, NAME)
    assert contents(widened) == before
    assert NAME not in hub.repos or hub.repos[NAME].files() == {}
    hub.faults.clear()
    fpe_hf.push_to_hub(widened, NAME)
    check_complete(hub, widened)


def test_an_old_version_stays_whole_while_a_push_fails(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    files = hub.repos[NAME].files()
    hub.fail(STEPS["commit"], times=LASTING)
    with pytest.raises(HubError):
        fpe_hf.push_to_hub(widened, NAME, license="mit")
    assert hub.repos[NAME].files() == files


def test_a_pull_request_is_not_opened_twice(hub: Hub, widened: Path) -> None:
    hub.fail("POST .*/commit/", kind="lose_reply")
    with pytest.raises(HubError, match="the connection broke"):
        fpe_hf.push_to_hub(widened, NAME, create_pr=True)
    assert hub.count("POST .*/commit/") == 1


def test_another_push_in_between_is_noticed(
    hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    create_commit = HfApi.create_commit

    def late(self: HfApi, *args: Any, **kwargs: Any) -> Any:
        hub.repos[NAME].add("main", "another", hub.repos[NAME].history()[0].tree)
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(HubError, match=r"412.*Someone else has pushed meanwhile; push again"):
        fpe_hf.push_to_hub(widened, NAME)
    assert hub.repos[NAME].files() == {}


def test_large_files_go_up_in_parts_and_a_part_may_fail(hub: Hub, widened: Path) -> None:
    hub.part_size = 20_000
    size = (widened / "model.safetensors").stat().st_size
    hub.fail(r"PUT /storage/.*/2$", kind="drop")
    fpe_hf.push_to_hub(widened, NAME)
    check_complete(hub, widened)
    assert hub.count(r"PUT /storage/\w+/\d+/\d+ 200") == -(-size // hub.part_size)


# -- downloading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "dropped connection", "slow"])
def test_a_download_goes_on(
    fault: str, hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    fpe_hf.push_to_hub(widened, NAME)
    injected = hub.fail("GET .*/resolve/.*/model.safetensors", **FAULTS[fault])
    model = fpe_hf.from_pretrained(NAME)
    assert injected.times == 0
    if fault == "dropped connection":
        assert hub.count("GET .*/resolve/.*/model.safetensors 206") == 1  # the rest, not all again
    inputs = tiny_inputs(model)
    expected = outputs_of(fpe_hf.from_pretrained(widened), inputs)["logits"]
    assert torch.equal(outputs_of(model, inputs)["logits"], expected)


def test_a_download_that_fails_is_an_error(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    hub.fail("/resolve/.*/model.safetensors", status=500, times=LASTING)
    with pytest.raises(OSError, match=NAME):
        fpe_hf.from_pretrained(NAME)


def test_a_download_with_a_changed_byte_is_noticed(hub: Hub, widened: Path) -> None:
    """The client compares sizes, not hashes; the checksums of the widened layers do the rest."""
    fpe_hf.push_to_hub(widened, NAME)
    content = (widened / "model.safetensors").read_bytes()
    middle = len(content) // 2
    name = _tensor_at(content, middle)
    assert re.search(r"intermediate|\boutput\.dense", name), f"the middle is in {name}"
    hub.fail("GET .*/resolve/.*/model.safetensors", kind="corrupt")
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        fpe_hf.from_pretrained(NAME)
    assert fpe_hf.from_pretrained(NAME, force_download=True) is not None


def _tensor_at(content: bytes, position: int) -> str:
    """Name of the tensor of a safetensors file that a byte belongs to."""
    import json

    length = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + length])
    tensors.pop("__metadata__", None)
    return next(
        name
        for name, fields in tensors.items()
        if fields["data_offsets"][0] <= position - 8 - length < fields["data_offsets"][1]
    )


def test_offline_after_a_download(hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    fpe_hf.from_pretrained(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert fpe_hf.from_pretrained(NAME) is not None
    assert len(hub.requests) == asked
