"""The numeric fields of a config: which there are, reading and setting them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import CLIPConfig, CvtConfig

from fpe_hf.dense.fields import ConfigField, assign, numeric_fields, stock_config


@pytest.fixture
def config() -> Any:
    return CLIPConfig()


def test_parts_are_reached_and_flags_are_none(config: Any) -> None:
    names = {str(item) for item in numeric_fields(config)}
    assert {"projection_dim", "text_config.intermediate_size", "vision_config.patch_size"} <= names
    assert "return_dict" not in names
    assert not any(part.startswith("_") for name in names for part in name.split("."))


def test_a_field_of_a_part_is_set_where_it_is(config: Any) -> None:
    item = ConfigField(("text_config",), "intermediate_size")
    item.set(config, 77)
    assert item.get(config) == config.text_config.intermediate_size == 77
    assert config.vision_config.intermediate_size == CLIPConfig().vision_config.intermediate_size


def test_an_entry_of_a_list_is_a_field_of_its_own() -> None:
    config = CvtConfig()
    before = list(config.mlp_ratio)
    item = ConfigField((), "mlp_ratio", 1)
    assert str(item) == "mlp_ratio[1]"
    assert item in set(numeric_fields(config))
    item.set(config, 9.0)
    assert config.mlp_ratio == [before[0], 9.0, before[2]]


def test_assigning_keeps_the_objects(config: Any) -> None:
    wanted = copy.deepcopy(config)
    ConfigField(("vision_config",), "intermediate_size").set(wanted, 5)
    wanted.made_up_in_loading = 3
    part = config.vision_config
    assign(config, wanted)
    assert not hasattr(config, "made_up_in_loading")
    assert config.vision_config is part
    assert part.intermediate_size == 5


def test_a_stock_config_says_nothing_of_fpe_hf(config: Any) -> None:
    config.quantization_config = {"quant_method": "fpe"}
    assert "quantization_config" not in stock_config(config).to_dict()
    assert config.quantization_config == {"quant_method": "fpe"}
