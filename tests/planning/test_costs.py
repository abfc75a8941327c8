from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import torch

from fpe_hf.config import PURPOSES, FPEConfig
from fpe_hf.errors import ConfigError, PlanError
from fpe_hf.planning import costs, plan_block
from fpe_hf.planning.costs import MODES, TILES, TOKENS, Cost, cost, options
from planning.cases import make_case


def rows(**ratios: float) -> list[dict[str, Any]]:
    """A table in which the time depends on the layout alone."""
    case = {"alpha": 4, "width": 768, "dtype": "fp32"}
    return [
        {"layout": layout, "tiles": tiles, "mode": MODES[purpose], "tokens": tokens, **case}
        | {"ratio": ratios[layout]}
        for layout, tiles in (("element", 0), ("block", 1), ("block", 8))
        for purpose in PURPOSES
        for tokens in TOKENS[purpose]
    ]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found = rows(element=2.0, block=1.0)
    monkeypatch.setattr(costs, "_table", lambda device: found if device == "cpu" else [])
    return found


def test_the_nearest_case_counts(table: list[dict[str, Any]]) -> None:
    table.append({**table[0], "alpha": 8, "ratio": 5.0})
    assert table[0]["mode"] == "train"
    asked = "cpu", "training"
    assert cost("element", 0, 4, 768, *asked).ratios == dict.fromkeys(TOKENS["training"], 2.0)
    assert cost("element", 0, 16, 768, *asked).ratios[128] == 5.0
    assert cost("element", 0, 16, 768, *asked).measured
    assert cost("element", 0, 16, 768, "cpu", "serving").ratios[128] == 2.0


def test_without_measurements_operations_count(table: list[dict[str, Any]]) -> None:
    assert cost("element", 0, 4, 768, "cuda", "serving").ratios[128] == 4.0
    found = cost("block", 8, 4, 768, "cuda", "training")
    assert found.ratios[128] == 1.0
    assert str(found).endswith("(operations; not measured)")


def test_the_overall_cost_is_a_geometric_mean() -> None:
    found = Cost("block", 4, {1: 2.0, 128: 8.0}, measured=True)
    assert found.overall == pytest.approx(4.0)
    assert str(found) == "block, 4 tiles: 2.00x at 1, 8.00x at 128 tokens"


def test_auto_is_the_default_and_fast_in_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {**row, "ratio": 3.0 if (row["layout"], row["mode"]) == ("block", "forward") else 2.0}
        for row in rows(element=2.0, block=2.0)
    ]
    monkeypatch.setattr(costs, "_table", lambda device: found)
    assert make_case(d=16, h=16, o=16, layout="auto").spec.layout == "block"
    assert make_case(d=16, h=16, o=16, layout="auto", purpose="serving").spec.layout == "element"
    assert (FPEConfig().layout, FPEConfig().purpose) == ("auto", "training")
    with pytest.raises(ConfigError, match="purpose='speed' is not accepted; accepted: 'training'"):
        FPEConfig(purpose="speed")


@pytest.mark.parametrize(("ratios", "first"), [((2.0, 1.0), "block"), ((1.0, 2.0), "element")])
def test_auto_takes_the_fastest(
    monkeypatch: pytest.MonkeyPatch, ratios: tuple[float, float], first: str
) -> None:
    found = rows(element=ratios[0], block=ratios[1])
    monkeypatch.setattr(costs, "_table", lambda device: found)
    case = make_case(d=16, h=16, o=16, layout="auto", alpha=4)
    assert case.spec.layout == first
    assert case.spec.tile_count == 1
    expected = FPEConfig(layout=first, alpha=4)
    assert case.plan.spec == plan_block(case.block, case.parent, expected).spec


def test_of_equal_ones_the_one_with_fewer_tiles_comes_first(table: list[dict[str, Any]]) -> None:
    case = make_case(d=16, h=16, o=16, layout="auto", alpha=4)
    found = [(own.layout, own.tile_size) for _, own in options(case.block, case.config, "cpu")]
    assert found == [("block", None), ("block", 4), ("block", 2), ("element", None)]


def test_auto_with_a_smaller_budget_drops_no_columns(table: list[dict[str, Any]]) -> None:
    assert make_case(d=16, h=16, o=16, layout="auto", budget=0.5).spec.layout == "element"
    assert make_case(d=16, h=16, o=16, layout="auto").spec.layout == "block"


def test_auto_passes_over_what_a_block_does_not_allow(table: list[dict[str, Any]]) -> None:
    """Extras that would leave a tile too few inputs, but not an element block too few weights."""
    options = {"alpha": 5, "bias": "child", "learn_coupling": True}
    with pytest.raises(PlanError, match="lower alpha, or set layout='element'"):
        _ = make_case(d=5, h=4, o=5, layout="block", **options).plan
    assert make_case(d=5, h=4, o=5, layout="auto", **options).spec.layout == "element"


def test_auto_and_a_tile_size_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="needs layout='block', not 'auto'"):
        FPEConfig(layout="auto", tile_size=8)
    config = FPEConfig(layout="block", tile_size=8, overrides={"*.0.*": {"layout": "auto"}})
    assert config.for_block(["*.0.*"]).tile_size is None


def test_auto_is_saved_as_what_was_asked_for_and_what_came_out() -> None:
    import fpe_hf
    from tiny_models import tiny_model

    model = fpe_hf.widen(tiny_model("bert"), layout="auto")
    stored = model.config.quantization_config.to_dict()
    assert stored["config"]["layout"] == "auto"
    assert {block["layout"] for block in stored["blocks"]} == {"block"}


def test_the_shipped_table_is_complete() -> None:
    file = files("fpe_hf.planning").joinpath("costs_cpu.json")
    table = json.loads(file.read_text(encoding="utf-8"))
    assert table["device"] == "cpu"
    assert table["measured_on"]
    found = {
        (row["layout"], row["tiles"], row["alpha"], row["width"], row["mode"], row["tokens"])
        for row in table["rows"]
        if row["dtype"] == "fp32"
    }
    expected = {
        (layout, tiles, alpha, width, MODES[purpose], tokens)
        for layout, tiles in (("element", 0), *(("block", tiles) for tiles in TILES))
        for alpha in (2, 4, 8)
        for width in (384, 768, 1024)
        for purpose in PURPOSES
        for tokens in TOKENS[purpose]
    }
    assert found >= expected
    assert all(row["ratio"] > 0 for row in table["rows"])


def test_the_device_is_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def remember(device: str) -> list[dict[str, Any]]:
        asked.append(device)
        return []

    monkeypatch.setattr(costs, "_table", remember)
    with torch.device("cpu"):
        _ = make_case(d=16, h=16, o=16, layout="auto").plan
    assert set(asked) == {"cpu"}
