"""Blocks that differ in a few values are one entry of the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fpe_hf
from fpe_hf.checkpoint.folding import fold, unfold
from fpe_hf.checkpoint.plan import FPEQuantizationConfig
from fpe_hf.errors import CheckpointError
from fpe_hf.planning import BlockSpec
from tiny_models import tiny_config, tiny_model
from tiny_moe import tiny_mixture

SPEC = fpe_hf.widen(tiny_model("llama"), layout="block").config.quantization_config.specs[0]


def specs_of(*names: str, **fields: Any) -> list[BlockSpec]:
    made = []
    for seed, name in enumerate(names):
        ups, down = (f"{name}.gate_proj", f"{name}.up_proj"), f"{name}.down_proj"
        made.append(replace(SPEC, name=name, ups=ups, down=down, seed=seed, **fields))
    return made


def read(entries: Any) -> tuple[BlockSpec, ...]:
    plan = FPEQuantizationConfig(
        format_version=3, config=fpe_hf.FPEConfig().to_dict(), blocks=entries
    )
    return plan.specs


@pytest.mark.parametrize("layout", ["element", "block"])
def test_the_config_of_six_blocks_is_short(layout: str, tmp_path: Path) -> None:
    from transformers import BertModel

    config = tiny_config("bert")
    config.num_hidden_layers = 6
    model = fpe_hf.widen(BertModel(config), layout=layout)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert len(text.splitlines()) < 150
    (entry,) = json.loads(text)["quantization_config"]["blocks"]
    assert entry["name"] == "encoder.layer.*"
    assert entry["each"]["*"] == ["0", "1", "2", "3", "4", "5"]
    assert fpe_hf.from_pretrained(tmp_path).config.quantization_config.specs == read([entry])


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("family", ["bert", "llama", "phi3", "gpt2", "clip", "t5", "gpt_oss"])
def test_what_is_folded_is_read_again(family: str, fan_out: str, layout: str) -> None:
    model = tiny_mixture(family) if family == "gpt_oss" else tiny_model(family)
    plan = fpe_hf.widen(model, fan_out=fan_out, layout=layout).config.quantization_config
    stored = json.loads(json.dumps(plan.to_dict()))
    assert len(stored["blocks"]) == (2 if family in ("clip", "t5") else 1)
    again = FPEQuantizationConfig(**stored)
    assert again.specs == plan.specs
    assert again.to_dict() == stored


NAMES = st.lists(st.sampled_from(["0", "1", "12", "layers", "mlp", "*", "x*"]), min_size=1)


@given(st.lists(NAMES.map(".".join), min_size=1, max_size=6, unique=True), st.data())
def test_any_blocks_are_read_again_in_order(names: list[str], data: st.DataObject) -> None:
    specs = [
        replace(spec, alpha=alpha, child_inputs=(3,) * alpha, child_outputs=(4,) * alpha)
        for spec in specs_of(*names)
        for alpha in [data.draw(st.sampled_from([2, 3]))]
    ]
    assert read(json.loads(json.dumps(fold(specs)))) == tuple(specs)


def test_a_lone_block_is_written_out_and_so_are_blocks_of_different_kinds() -> None:
    assert fold(specs_of("layers.0.mlp")) == [specs_of("layers.0.mlp")[0].to_dict()]
    mixed = [*specs_of("layers.0.mlp"), *specs_of("layers.1.mlp", bias="child")]
    assert [entry["name"] for entry in fold(mixed)] == ["layers.0.mlp", "layers.1.mlp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"each": []}, "must be an object"),
        ({"each": {}}, r"lacks '\*'"),
        ({"each": {"seed": [1, 2]}}, r"has 'seed', which the block has already"),
        ({"each": {"*": ["0", "1"], "seeds": [1, 2]}}, "has 'seeds'; accepted: .*seed"),
        ({"each": {"*": ["0", "1"], "alpha": [2, 2]}}, "has 'alpha'; accepted"),
        ({"each": {"*": "01"}}, r"must list the values of '\*'"),
        ({"each": {"*": []}}, r"must list the values of '\*'"),
        ({"each": {"*": [0, 1]}}, r"must list texts for '\*'"),
        ({"seed": None, "each": {"*": ["0", "1"], "seed": [1]}}, "lists of different lengths"),
        ({"seed": None, "each": {"*": ["0"], "seed": ["1"]}}, "seed='1' must be int"),
        ({"each": {"*": ["0", "0"]}}, "names in common"),
        ({"each": {"*": ["0"], "each": [{}]}}, "has 'each'; accepted"),
    ],
)
def test_entries_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    entry = {**specs_of("layers.*.mlp")[0].to_dict(), **change}
    entry = {name: value for name, value in entry.items() if value is not None or name == "fused"}
    with pytest.raises(CheckpointError, match=message):
        read([entry])


@pytest.mark.parametrize(
    "claim",
    [
        {"child_inputs": [1] * 100_000, "each": {"*": ["0"] * 100_000}},
        {"name": "*" * 100_000, "each": {"*": ["0" * 100_000]}},
    ],
)
def test_an_entry_stands_for_no_more_than_could_be_written_out(claim: dict[str, Any]) -> None:
    (spec,) = specs_of("layers.*.mlp")
    entry = {**spec.to_dict(), **claim}
    with pytest.raises(CheckpointError, match=r"written out, has .* bytes; accepted: up to"):
        next(unfold([entry]))
