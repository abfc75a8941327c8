from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import fpe_hf
from disagreeing import WAYS as WAYS_TO_DISAGREE
from disagreeing import disagreeing
from fpe_hf.errors import BudgetError, ConfigError
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_model

D, H = 32, 48  # inputs (and outputs) and hidden neurons of the tiny models
PARENT = D * H + H + H * D + D  # non-zeros of one block of the tiny BERT

WAYS: list[dict[str, Any]] = [
    {"layout": layout, **options}
    for layout in ("element", "block")
    for options in (
        {},
        {"alpha": 4},
        {"fan_out": "partition", "coupling": 1.0},
        {"bias": "child"},
        {"learn_coupling": True, "coupling": 0.5},
    )
]


def widened(family: str = "bert", **options: Any) -> nn.Module:
    return fpe_hf.widen(tiny_model(family), **options)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_numbers_equal_an_independent_count(options: dict[str, Any]) -> None:
    model = widened(**options)
    report = fpe_hf.audit(model)
    assert report.ok
    assert [block.name for block in report.blocks] == ["encoder.layer.0", "encoder.layer.1"]
    for block in report.blocks:
        names = [f"{block.name}.intermediate.dense", f"{block.name}.output.dense"]
        layers = [model.get_submodule(name) for name in names]
        numbers = {
            key: sum(p.numel() for layer in layers for n, p in layer.named_parameters() if n == key)
            for key in ("weight", "bias", "coupling")
        }
        assert (block.weights, block.biases, block.scalars) == tuple(numbers.values())
        assert block.nonzeros == sum(numbers.values()) <= PARENT == block.parent_nonzeros
        assert (block.parents, block.children) == (H, options.get("alpha", 2) * H)
        assert block.parent_bytes == 4 * PARENT
        tensors = [t for layer in layers for t in (*layer.parameters(), *layer.buffers())]
        assert block.memory_bytes == bytes_of(tensors)
        state = [t for layer in layers for t in layer.state_dict().values()]
        assert block.disk_bytes == bytes_of(state)


def test_biases_and_scalars_are_paid_for() -> None:
    shared = fpe_hf.audit(widened()).total
    child = fpe_hf.audit(widened(bias="child")).total
    learned = fpe_hf.audit(widened(learn_coupling=True, coupling=1.0)).total
    assert (shared.biases, child.biases, learned.biases) == (2 * (H + D), 2 * (2 * H + D), 160)
    assert (shared.scalars, learned.scalars) == (0, 2 * H)
    assert shared.nonzeros == child.nonzeros == learned.nonzeros == 2 * PARENT


def test_the_nonzeros_of_the_dense_form_are_those_counted() -> None:
    """Without coupling, the children's matrices hold exactly the weights counted."""
    for layout in ("element", "block"):
        model = widened(layout=layout)
        dense = [layer.dense_weight() for _, layer in fpe_layers(model)]
        nonzeros = sum(int((weight != 0).sum()) for weight in dense)
        assert nonzeros == fpe_hf.audit(model).total.weights


def test_totals_are_sums() -> None:
    report = fpe_hf.audit(widened("clip", overrides={"text_model": {"alpha": 4}}))
    assert len(report.blocks) == 4
    for field in ("parent_nonzeros", "nonzeros", "children", "parent_bytes", "disk_bytes"):
        assert getattr(report.total, field) == sum(getattr(b, field) for b in report.blocks)
    assert report.total.name == "total"
    assert (report.total.layout, report.total.alpha) == ("", 0)
    assert report.total.children == 2 * 4 * H + 2 * 2 * H


def test_gated_fused_and_shared_blocks_are_counted_once() -> None:
    for family in ("llama", "phi3"):
        report = fpe_hf.audit(widened(family))
        assert [block.parent_nonzeros for block in report.blocks] == [3 * D * H] * 2
        assert report.total.nonzeros == 6 * D * H
    assert fpe_hf.audit(widened("albert")).total.nonzeros == PARENT


def test_coverage_says_what_pruning_left() -> None:
    exact = fpe_hf.audit(widened(fan_out="partition", coupling=1.0))
    assert exact.total.coverage == 1.0
    assert exact.total.disjoint
    pruned = fpe_hf.audit(widened()).total.coverage
    assert 0.5 < pruned < 1.0
    layer = tiny_model("bert").encoder.layer[0]
    kept = widened(targets=["encoder.layer.0"]).encoder.layer[0].intermediate.dense
    matrix = kept.dense_weight().unflatten(0, (kept.spec.alpha, -1)).sum(0)
    share = float((matrix != 0).double().mean())
    assert layer.intermediate.dense.weight.shape == matrix.shape
    assert fpe_hf.audit(widened(targets=["encoder.layer.0"])).total.coverage == pytest.approx(share)


def test_it_prints_as_a_table() -> None:
    report = fpe_hf.audit(
        widened(layout="element", overrides={"encoder.layer.1": {"layout": "block"}})
    )
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "block"
    assert "parent non-zeros" in lines[0]
    assert lines[2].split()[:5] == ["encoder.layer.0", "element", "2", "3,152", "3,152"]
    assert lines[3].split()[1] == "block"
    assert lines[4].split()[:2] == ["total", "6,304"]
    assert lines[-1] == "All invariants hold."
    assert len({len(line) for line in lines[:2]}) == 1


def test_it_exports_as_json() -> None:
    report = fpe_hf.audit(widened())
    plain = report.to_dict()
    assert json.loads(report.to_json()) == json.loads(json.dumps(plain))
    assert plain["ok"] is True
    assert plain["total"]["nonzeros"] == 2 * PARENT
    assert [block["name"] for block in plain["blocks"]] == ["encoder.layer.0", "encoder.layer.1"]
    assert not plain["breaches"]


# -- breaches --------------------------------------------------------------------------------------


def grow(model: Any) -> str:
    layer = model.encoder.layer[0].output.dense
    layer.weight = nn.Parameter(torch.cat([layer.weight, torch.ones(5)]))
    return "'encoder.layer.0' has 3157 non-zeros, 5 more than its parent"


def add_a_parameter(model: Any) -> str:
    model.encoder.layer[1].intermediate.dense.rogue = nn.Parameter(torch.ones(1))
    return "has a parameter 'rogue' outside the budget"


def add_a_module(model: Any) -> str:
    model.encoder.layer[1].intermediate.dense.adapter = nn.Linear(3, 1, bias=False)
    return "has a parameter 'adapter.weight' outside the budget"


def remove_a_layer(model: Any) -> str:
    model.encoder.layer[0].output.dense = nn.Linear(96, 32)
    return "'encoder.layer.0' is incomplete"


def share_inputs(model: Any) -> str:
    layer = model.encoder.layer[0].intermediate.dense
    layer.inputs[:, 0] = layer.inputs[:, -1]
    layer.seal()
    return "Children of block 'encoder.layer.0' share inputs"


def overwrite(model: Any) -> str:
    model.encoder.layer[0].output.dense.outputs.add_(1)
    return "index buffer 'outputs' of block 'encoder.layer.0' was overwritten"


@pytest.mark.parametrize(
    ("breach", "layout"),
    [
        (grow, "element"),
        (add_a_parameter, "element"),
        (add_a_module, "block"),
        (remove_a_layer, "element"),
        (share_inputs, "block"),
        (overwrite, "block"),
    ],
)
def test_a_breach_is_flagged_and_raised(breach: Any, layout: str) -> None:
    model = widened(layout=layout)
    message = breach(model)
    report = fpe_hf.audit(model)
    assert not report.ok
    assert any(message in line for line in report.breaches), report.breaches
    assert message in str(report).splitlines()[-1]
    assert report.to_dict()["ok"] is False
    with pytest.raises(BudgetError, match="encoder"):
        report.raise_for_breach()
    with pytest.raises(BudgetError, match="encoder"):
        fpe_hf.audit(model, strict=True)


def test_a_model_in_order_raises_nothing() -> None:
    report = fpe_hf.audit(widened(), strict=True)
    assert report.raise_for_breach() is report


def test_a_dense_model_cannot_be_audited() -> None:
    with pytest.raises(ConfigError, match="no widened block"):
        fpe_hf.audit(tiny_model("bert"))


@pytest.mark.parametrize("way", WAYS_TO_DISAGREE, ids=str)
def test_gate_and_up_that_divide_inputs_differently(way: dict[str, Any]) -> None:
    """Each is disjoint on its own, but children of a parent share inputs by one and the other."""
    report = fpe_hf.audit(disagreeing(**way))
    assert [block.disjoint for block in report.blocks] == [False, True]
    assert report.breaches == ("Children of block 'model.layers.0.mlp' share inputs.",)
