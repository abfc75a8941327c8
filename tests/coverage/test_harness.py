"""The harness itself: shrinking, the count by names, the report, the process pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tools.coverage.build import LEVELS, small_config
from tools.coverage.count import count
from tools.coverage.fixes import FIXES, Fix
from tools.coverage.inputs import repaired
from tools.coverage.report import page, write
from tools.coverage.shrink import parts
from tools.coverage.steps import check_type, difference
from tools.coverage.types import NotBuildable, model_class, model_types


def test_shrinking_reaches_every_part_and_renumbers_tokens_consistently() -> None:
    config = small_config("qwen2_vl", Fix(), LEVELS[0])
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 64
    assert config.image_token_id < config.text_config.vocab_size
    assert len(list(parts(config))) == 3


def test_layers_of_every_kind_are_kept() -> None:
    config = small_config("gemma3_text", Fix(), LEVELS[0])
    assert sorted(set(config.layer_types)) == ["full_attention", "sliding_attention"]
    assert len(config.layer_types) == config.num_hidden_layers


LATER = {"apertus1p5", "apertus1p5_vision_tokenizer"}
"""Types that the oldest transformers allowed does not have."""


def test_fixes_name_known_types() -> None:
    assert set(FIXES) - LATER <= set(model_types())


def test_parts_without_a_model_are_not_buildable() -> None:
    with pytest.raises(NotBuildable, match="part of others"):
        model_class("sam_prompt_encoder")


class Layer(nn.Module):
    """An attention, a gated feed-forward layer, and experts."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 8)})
        names = {"gate_proj": (8, 12), "up_proj": (8, 12), "down_proj": (12, 8)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in names.items()})
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.zeros(3, 24, 8))
        self.experts.down_proj = nn.Parameter(torch.zeros(3, 8, 12))


def test_count_by_names_and_shapes() -> None:
    layers = {layer.down: layer for layer in count(nn.ModuleList([Layer()]))}
    assert layers.keys() == {"0.mlp.down_proj", "0.experts.down_proj"}
    assert layers["0.mlp.down_proj"].ups == ("0.mlp.gate_proj", "0.mlp.up_proj")
    assert layers["0.experts.down_proj"].hidden == 12


def test_image_tokens_are_added_as_the_model_asks() -> None:
    model = nn.Module()
    model.config = small_config("llava", Fix(), LEVELS[0])
    inputs = {"input_ids": torch.full((2, 16), 7)}
    failure = ValueError("Image features and image tokens do not match, tokens: 0, features: 8")
    changed: Any = repaired(model, inputs, failure)
    assert (changed["input_ids"] == model.config.image_token_id).sum(1).tolist() == [4, 4]
    assert repaired(model, inputs, ValueError("something else")) is None


def test_difference_is_relative_to_each_tensor() -> None:
    assert difference([torch.tensor([100.0, 1.0])], [torch.tensor([100.0, 2.0])]) == 0.01


def test_difference_ignores_masks_that_are_equal() -> None:
    mask = torch.tensor([1.0, -torch.inf])
    assert difference([mask], [mask]) == 0.0
    assert difference([torch.tensor([1.0, 2.0])], [mask]) == torch.inf


def test_layers_that_targets_must_name_are_widened_by_name() -> None:
    record = check_type("molmo2_adapter")
    assert (record["status"], record["targets"]) == ("pass", ["image_projector"])


def test_blocks_exported_by_merging_are_counted(tmp_path: Path) -> None:
    record = check_type("bloom")
    assert (record["status"], record["merged"]) == ("pass", 2)
    write([record], tmp_path)
    page = (tmp_path / "coverage.md").read_text()
    assert "1 have blocks whose hidden width no field" in page
    assert "merged to their parents' width: bloom." in page
    (kept,) = json.loads((tmp_path / "coverage.json").read_text())
    assert [(block["name"], block["count"]) for block in kept["blocks"]] == [("h.*.mlp", 2)]


def test_report_is_complete(tmp_path: Path) -> None:
    records = [
        {"type": "b", "status": "fail", "step": "find", "error": "ValueError: 'x.y' | 3"},
        {"type": "a", "status": "pass", "step": "done", "error": None, "kinds": ["plain"]},
    ]
    write(records, tmp_path)
    page = (tmp_path / "coverage.md").read_text()
    assert "| a | pass |" in page
    assert "50.0 % pass" in page
    assert [record["type"] for record in json.loads((tmp_path / "coverage.json").read_text())] == [
        "a",
        "b",
    ]


def _records(version: str, **statuses: str) -> list[dict[str, Any]]:
    return [
        {"type": name, "transformers": version, "status": status, "step": "done", "error": None}
        for name, status in statuses.items()
    ]


def test_other_versions_of_transformers_have_a_section_each() -> None:
    records = _records("5.1.0", a="pass", b="no MLP")
    later = _records("5.2.0", a="pass", b="pass", c="no MLP")
    text = page(records, [records, later])
    assert "model type of transformers\n5.1.0 " in text
    assert "Nothing differs from 5.1.0." in text
    section = text.partition("## Also on transformers 5.2.0")[2].partition("## Kinds")[0]
    assert "3 types: 2 pass, 1 no MLP." in section
    assert "| b | no MLP | pass |" in section
    assert "| c | unknown | no MLP |" in section
    assert "| a |" not in section


def test_records_of_two_versions_are_no_one_sweep() -> None:
    with pytest.raises(ValueError, match="several versions"):
        page(_records("5.1.0", a="pass") + _records("5.2.0", b="pass"))
