"""Who trains a model whose siblings stay equal is told so, once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import fpe_hf
from fpe_hf.layers.parting import _warn
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

EXACT: dict[str, Any] = {"coupling": 1.0, "fan_out": "partition"}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    _warn.cache_clear()
    yield
    _warn.cache_clear()


def run(model: PreTrainedModel, tokens: int = 4) -> None:
    if model.config.model_type == "mixtral":
        model(torch.arange(5, 9).view(1, -1))
    else:
        model(**tiny_inputs(model, batch=16, length=tokens))


@pytest.mark.parametrize("fan_out", ["partition", "replicate"])
@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "phi3", "mixtral"])
def test_training_of_equal_siblings_is_noticed_once(
    kind: str, layout: str, fan_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_mixture(kind) if kind == "mixtral" else tiny_model(kind)
    fpe_hf.widen(model, coupling=1.0, layout=layout, fan_out=fan_out)
    model.eval()
    run(model)
    model.train()
    with torch.no_grad():
        run(model)
    assert caplog.messages == []
    run(model)
    run(model)
    assert len(caplog.messages) == 1
    assert "Siblings cannot part" in caplog.text
    assert "fpe_hf.CouplingSchedule" in caplog.text


def test_an_mlp_that_is_one_operation_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = fpe_hf.widen(tiny_model("vit"), layout="block", **EXACT).train()
    model(pixel_values=torch.randn(64, 3, 16, 16))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": 0.9},
        {"learn_coupling": True},
        {"bias": "child"},
        {"coupling": 0.0, "fan_out": "replicate", "split": "learned"},
    ],
)
def test_siblings_that_may_part_are_left_alone(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run(fpe_hf.widen(tiny_model("bert"), **{**EXACT, **options}).train())
    assert caplog.messages == []


def test_a_schedule_and_frozen_weights_keep_it_quiet(caplog: pytest.LogCaptureFixture) -> None:
    model = fpe_hf.widen(tiny_model("bert"), **EXACT).train()
    fpe_hf.CouplingSchedule(model, 10, begin=0.5, end=1.0)
    run(model)
    run(fpe_hf.widen(tiny_model("bert"), **EXACT).train().requires_grad_(False))
    assert caplog.messages == []


def test_compiled_code_is_not_broken_by_it(caplog: pytest.LogCaptureFixture) -> None:
    model = fpe_hf.widen(tiny_model("bert"), **EXACT).train()
    block = model.encoder.layer[0].intermediate
    torch.compile(block, backend="eager", fullgraph=True)(torch.randn(4, 32))
    assert "Siblings" not in caplog.text
