"""An open model is saved and loaded, and says what it is: nobody ships it unawares."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

import fpe_hf
from cli.running import fpe_hf as command
from fpe_hf.errors import BudgetError
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import logits, tiny_mixture

OPEN = "THE BUDGET IS OPEN: the blocks hold 2."


def opened(family: str = "vit", **options: Any) -> Any:
    return fpe_hf.widen(tiny_model(family), **{"alpha": 3, "split": "learned", **options})


def assert_same(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("family", ["vit", "llama", "gpt2", "phi3", "albert", "t5_gated"])
def test_an_open_model_is_loaded_as_it_was_and_says_so(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(family)
    schedule = fpe_hf.BudgetSchedule(model, 10)
    for _ in range(4):
        schedule.step()
    model.save_pretrained(tmp_path)
    assert caplog.text == ""
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert [record.name for record in caplog.records if "OPEN" in record.message] == ["fpe_hf"]
    assert fpe_hf.audit(loaded).verdict in caplog.text
    first, second = model(**tiny_inputs(model)), loaded(**tiny_inputs(model))
    torch.testing.assert_close(first[0], second[0])
    again = fpe_hf.BudgetSchedule(loaded, 10, start=4)
    for own in (schedule, again):
        own.close()
    assert_same(model, loaded)
    caplog.clear()
    loaded.save_pretrained(tmp_path / "closed")
    fpe_hf.from_pretrained(tmp_path / "closed")
    assert "OPEN" not in caplog.text


def test_open_experts_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = fpe_hf.widen(tiny_mixture("mixtral"), alpha=2, split="learned")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(model, loaded)
    torch.testing.assert_close(logits(model), logits(loaded))
    assert "THE BUDGET IS OPEN" in caplog.text


def test_models_on_the_meta_device_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened().save_pretrained(tmp_path)
    AutoModel.from_pretrained(tmp_path, device_map="meta")
    assert "OPEN" not in caplog.text


def test_open_models_are_not_pushed(tmp_path: Path) -> None:
    model = opened()
    with pytest.raises(BudgetError, match=OPEN):
        fpe_hf.push_to_hub(model, "me/model")
    with pytest.raises(BudgetError, match=OPEN):
        model.push_to_hub("me/model")
    with pytest.raises(BudgetError, match=OPEN):
        model.save_pretrained(tmp_path / "model", push_to_hub=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("family", ["vit", "gpt2"])
def test_a_dense_model_of_an_open_one_is_larger_than_the_parent(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(family)
    dense = fpe_hf.to_dense(model)
    assert OPEN in caplog.text
    assert "The dense model has as many." in caplog.text
    first, second = model(**tiny_inputs(model)), dense(**tiny_inputs(model))
    torch.testing.assert_close(first[0], second[0])
    caplog.clear()
    fpe_hf.BudgetSchedule(model, 10).close()
    fpe_hf.to_dense(model)
    assert caplog.text == ""


def test_a_learned_split_starts_exactly_and_does_not_say_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = tiny_model("vit")
    dense.save_pretrained(tmp_path)
    loaded = fpe_hf.from_pretrained(tmp_path)
    fpe_hf.widen(loaded, alpha=3, split="learned", bias="child")
    assert caplog.text == ""
    inputs = tiny_inputs(dense)
    torch.testing.assert_close(loaded(**inputs)[0], dense(**inputs)[0], rtol=1e-3, atol=1e-3)


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open model, written by the command."""
    place = tmp_path_factory.mktemp("models")
    tiny_model("vit").save_pretrained(place / "dense")
    words = ["--out", place / "open", "--split", "learned", "--alpha", 3]
    result = command("widen", place / "dense", *words)
    assert result.code == 0, result
    assert OPEN in result.out
    assert "Saved the widened ViTForImageClassification" in result.out
    assert "change until it is trained" not in result.err
    return place / "open"


def test_the_command_writes_what_widen_makes(folder: Path) -> None:
    model = fpe_hf.widen(folder.with_name("dense"), alpha=3, split="learned")
    loaded = fpe_hf.from_pretrained(folder)
    assert_same(model, loaded)
    assert all(layer.spec.layout == "open" for _, layer in fpe_layers(loaded))


def test_validate_finds_nothing_wrong_and_says_that_it_is_open(folder: Path) -> None:
    result = command("validate", folder)
    assert result.code == 0, result
    assert result.out.startswith("OK: ")
    assert "The budget is open: the blocks hold up to 2." in result.out


def test_inspect_fails_as_a_strict_audit_does(folder: Path) -> None:
    result = command("inspect", folder)
    assert result.code == 1
    assert OPEN in result.out
    assert OPEN in result.err
    document = command("inspect", folder, "--json")
    assert document.code == 1
    assert '"open": true' in document.out
    assert command("inspect", folder, "--config-only").code == 0


def test_push_refuses(folder: Path) -> None:
    result = command("push", folder, "me/model", "--dry-run")
    assert result.code == 1
    assert OPEN in result.err


def test_export_warns(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fpe_hf"):
        result = command("export", folder, "--dense", tmp_path / "stock")
    assert result.code == 0, result
    assert "The dense model has as many." in caplog.text + result.err
