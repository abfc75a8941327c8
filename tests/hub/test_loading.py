"""`from_pretrained`: the right class, and nothing that a config cannot ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fpe_hf
from checkpoint.fresh import outputs_of
from fpe_hf.errors import CheckpointError, ConfigError
from tiny_models import tiny_inputs, tiny_model


@pytest.mark.parametrize("family", ["clip", "bert_classifier", "t5", "vit"])
def test_the_class_that_was_saved(family: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model(family))
    model.save_pretrained(tmp_path)
    loaded = fpe_hf.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded) is type(model)
    assert not loaded.training
    inputs = tiny_inputs(model)
    expected = outputs_of(model, inputs)
    assert all(torch.equal(outputs_of(loaded, inputs)[name], expected[name]) for name in expected)


def test_a_dense_model(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    assert type(fpe_hf.from_pretrained(tmp_path)).__name__ == "BertModel"


def test_remote_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never runs code from a repository"):
        fpe_hf.from_pretrained("user/name", trust_remote_code=True)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the repository was run')")
    with pytest.raises(CheckpointError, match=r"model_type='mine'.*never runs code"):
        fpe_hf.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 .* above 100,000"),
        ({"num_labels": 10**10}, "num_labels=10000000000 .* above"),
        ({"num_hidden_layers": 30_000}, "more than 200 parameter tensors"),
    ],
)
def test_impossible_counts(claim: dict[str, Any], message: str, tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert_classifier")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **claim}))
    with pytest.raises(CheckpointError, match=message):
        fpe_hf.from_pretrained(tmp_path)


@pytest.mark.parametrize("architectures", [None, ["SomethingElse"]])
def test_nothing_starts_at_random_whatever_class_is_named(
    architectures: list[str] | None, tmp_path: Path
) -> None:
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = architectures
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(fpe_hf.from_pretrained(tmp_path)).__name__ == "BertModel"
    weights = load_file(tmp_path / "model.safetensors")
    del weights["pooler.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.bias"):
        fpe_hf.from_pretrained(tmp_path)
