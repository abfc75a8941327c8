from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig

import fpe_hf as library
from cli.damage import WEIGHTS
from cli.running import assert_refused, fpe_hf
from fpe_hf.checkpoint.folding import unfold
from tiny_models import tiny_config, tiny_model


def test_lists_the_blocks_of_a_dense_model(dense: Path) -> None:
    result = fpe_hf("inspect", dense)
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert lines[0] == "ViTForImageClassification, not widened: 2 MLP blocks"
    row = ["vit.layers.1.mlp", "plain", "gelu", "fc1", "fc2", "32", "48", "32"]
    assert row in [line.split() for line in lines]
    assert "Left alone" not in result.out


def test_needs_no_weights_and_tells_why_a_block_is_left_alone(tmp_path: Path) -> None:
    config = tiny_config("siglip")
    config.architectures = ["SiglipModel"]
    config.save_pretrained(tmp_path)
    tables = fpe_hf("inspect", tmp_path)
    assert tables.code == 0, tables
    assert "SiglipModel, not widened: 4 MLP blocks" in tables.out
    assert "outside a repeated stack; name it in targets to widen it" in tables.out

    found = json.loads(fpe_hf("inspect", tmp_path, "--json").out)
    assert (found["class"], found["widened"], len(found["blocks"])) == ("SiglipModel", False, 4)
    assert found["blocks"][0]["kind"] == "plain"
    assert found["blocks"][0]["parents"] == 48
    (miss,) = found["near_misses"]
    assert miss["down"] == miss["block"]["down"] == "vision_model.head.mlp.fc2"


def test_a_gated_block_is_shown_with_both_its_ups(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    out = fpe_hf("inspect", tmp_path).out
    assert "gate_proj + up_proj" in out
    assert "gated" in out


def test_a_model_without_blocks_is_no_error(tmp_path: Path) -> None:
    ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]).save_pretrained(tmp_path)
    result = fpe_hf("inspect", tmp_path)
    assert result.code == 0, result
    assert "ResNetModel, not widened: 0 MLP blocks" in result.out


def test_audits_a_widened_model(widened: Path) -> None:
    result = fpe_hf("inspect", widened)
    assert result.code == 0, result
    assert result.out.startswith("ViTForImageClassification, widened: 2 MLP blocks\nalpha=2, ")
    assert "layout=block" in result.out
    assert result.out.endswith("All invariants hold.\n")


def test_json_is_one_document_with_the_audit(widened: Path) -> None:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(widened)
    found = json.loads(fpe_hf("inspect", widened, "--json").out)
    assert found["widened"] is True
    assert found["config"]["layout"] == "block"
    assert [block["name"] for block in found["blocks"]] == ["vit.layers.0.mlp", "vit.layers.1.mlp"]
    assert found["audit"] == json.loads(library.audit(model).to_json())
    assert found["audit"]["ok"] is True


def test_config_only_reads_no_weights(widened: Path, tmp_path: Path) -> None:
    shutil.copytree(widened, tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).unlink()
    result = fpe_hf("inspect", tmp_path / "copy", "--config-only")
    assert result.code == 0, result
    assert "the weights were not read" in result.out
    found = json.loads(fpe_hf("inspect", tmp_path / "copy", "--config-only", "--json").out)
    assert found["audit"] is None


def test_an_open_model_shows_no_fields_that_training_decides(tmp_path: Path) -> None:
    library.widen(tiny_model("vit"), split="learned").save_pretrained(tmp_path)
    text = fpe_hf("inspect", tmp_path, "--config-only").out
    assert "split=learned" in text
    assert "open=" not in text
    assert "fan_out=" not in text


def test_names_do_not_control_the_terminal(widened: Path, tmp_path: Path) -> None:
    shutil.copytree(widened, folder := tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    plan = config["quantization_config"]
    plan["blocks"] = list(unfold(plan["blocks"]))
    plan["blocks"][0]["name"] = "\x1b[2J\rblock"
    (folder / "config.json").write_text(json.dumps(config))
    result = fpe_hf("inspect", folder, "--config-only")
    assert "\\x1b[2J\\rblock" in result.out
    assert not {"\x1b", "\r"} & set(result.out)


def test_names_any_damage(damaged: tuple[Path, str]) -> None:
    folder, message = damaged
    assert_refused(fpe_hf("inspect", folder), message)


def test_shows_a_breach_and_fails(widened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fpe_hf.checkpoint import loading

    load = loading.load_model

    def load_with_a_stray_parameter(*args: object, **kwargs: object) -> object:
        model = load(*args, **kwargs)
        layer = model.get_submodule("vit.layers.0.mlp.fc1")
        layer.stray = torch.nn.Parameter(torch.zeros(1))
        return model

    monkeypatch.setattr(loading, "load_model", load_with_a_stray_parameter)
    result = fpe_hf("inspect", widened)
    assert result.code == 1
    assert "has a parameter 'stray' outside the budget" in result.out
    assert "has a parameter 'stray' outside the budget" in result.err


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(fpe_hf("inspect", tmp_path / "file"), "is a file; give the folder", code=2)
    assert_refused(fpe_hf("inspect", tmp_path / "none"), "there is no folder", code=2)
    assert_refused(fpe_hf("inspect", tmp_path), "Unrecognized model")
