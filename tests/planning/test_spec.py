from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given

from fpe_hf.errors import CheckpointError
from fpe_hf.planning import BlockSpec
from planning.cases import Case, cases, make_case

LAYOUT_FIELDS = {
    "element": ["assignment", "up_values", "down_values", "up_pruned", "down_pruned"],
    "block": ["tile_size", "child_inputs", "child_outputs"],
}
OTHER_FIELDS = [
    *["name", "ups", "down", "in_features", "parents", "out_features", "fused", "up_biases"],
    *["down_bias", "alpha", "split", "fan_out", "layout", "coupling", "learn_coupling", "bias"],
    *["seed", "parent_nonzeros"],
]


def fields_of(layout: str, **config: Any) -> dict[str, Any]:
    """A gated block (7 inputs, 5 parents, 6 outputs, alpha 2) as JSON gives it."""
    if layout == "block":
        config.setdefault("tile_size", 2)
    spec = make_case("gated", layout=layout, **config).spec
    fields: dict[str, Any] = json.loads(json.dumps(spec.to_dict()))
    return fields


@given(cases())
def test_json_round_trip(case: Case) -> None:
    assert BlockSpec.from_dict(json.loads(json.dumps(case.spec.to_dict()))) == case.spec


@pytest.mark.parametrize("layout", ["element", "block"])
def test_a_coupling_on_its_way_round_trips_and_is_checked(layout: str) -> None:
    fields = fields_of(layout, coupling=0.5)
    spec = BlockSpec.from_dict({**fields, "annealed_from": 1})
    assert BlockSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.as_widened == BlockSpec.from_dict({**fields, "coupling": 1.0})
    for wrong in (1.5, -0.5, math.nan, "1", True):
        with pytest.raises(CheckpointError, match="annealed_from"):
            BlockSpec.from_dict({**fields, "annealed_from": wrong})
    with pytest.raises(CheckpointError, match="no coupling that was fixed"):
        BlockSpec.from_dict(
            {**fields_of(layout, coupling=0.5, learn_coupling=True), "annealed_from": 1.0}
        )


@pytest.mark.parametrize("layout", ["element", "block"])
def test_only_the_fields_of_the_layout_are_written(layout: str) -> None:
    assert sorted(fields_of(layout)) == sorted(OTHER_FIELDS + LAYOUT_FIELDS[layout])


@pytest.mark.parametrize(
    ("layout", "name"),
    [(layout, name) for layout in LAYOUT_FIELDS for name in OTHER_FIELDS + LAYOUT_FIELDS[layout]],
)
def test_missing_and_mistyped_fields_are_named(layout: str, name: str) -> None:
    fields = fields_of(layout)
    without = {key: value for key, value in fields.items() if key != name}
    with pytest.raises(CheckpointError, match=name):
        BlockSpec.from_dict(without)
    for wrong in (None, "x", 3, 2.5, True, [None], [[1]], {"a": 1}):
        if accepts(fields[name], wrong) or (name in ("split", "fused") and wrong is None):
            continue
        with pytest.raises(CheckpointError, match=name):
            BlockSpec.from_dict({**fields, name: wrong})


def accepts(right: object, wrong: object) -> bool:
    """Whether a value has the right type after all (it may still be out of range)."""
    return type(right) is type(wrong) and not isinstance(right, list)


@pytest.mark.parametrize("layout", ["element", "block"])
def test_fields_of_the_other_layout_and_typos_are_unknown(layout: str) -> None:
    fields = fields_of(layout)
    other = "element" if layout == "block" else "block"
    for name in LAYOUT_FIELDS[other]:
        with pytest.raises(CheckpointError, match=f"unknown field '{name}'"):
            BlockSpec.from_dict({**fields, name: 1})
    with pytest.raises(CheckpointError, match=r"'parent'.*Did you mean 'parents'"):
        BlockSpec.from_dict({**fields, "parent": 5})


ANY_LAYOUT = [
    ("in_features", 0),
    ("in_features", -7),
    ("parents", 0),
    ("out_features", 0),
    ("alpha", 1),
    ("alpha", 257),
    ("fan_out", "copy"),
    ("bias", "none"),
    ("layout", "csr"),
    ("fused", "thirds"),
    ("fused", "halves"),  # with two ups
    ("ups", []),
    ("ups", ["a", "b", "c"]),
    ("up_biases", [True]),
    ("coupling", -0.5),
    ("coupling", 1.5),
    ("coupling", float("nan")),
    ("coupling", float("inf")),
    ("seed", -1),
    ("seed", 2**63),
    ("parent_nonzeros", 10),  # fewer than the block holds
    ("parent_nonzeros", 2 * 5 * 7 + 6 * 5 + 2 * 5 + 6 + 1),  # more than the parent can have
]
OF_A_LAYOUT = [
    ("element", "assignment", "drawn"),
    ("element", "up_values", [3]),
    ("element", "up_values", [36, 3]),
    ("element", "up_values", [-1, 3]),
    ("element", "up_pruned", [True]),
    ("element", "up_pruned", [False, False]),  # but fewer values than entries
    ("element", "down_values", -2),
    ("element", "down_values", 61),
    ("element", "down_pruned", False),
    ("block", "tile_size", 0),
    ("block", "tile_size", 6),
    ("block", "child_inputs", [1]),
    ("block", "child_inputs", [-1, 2]),
    ("block", "child_inputs", [4, 4]),
    ("block", "child_outputs", [1, 2]),  # a replicated fan-out has equal ones
    ("block", "child_outputs", [7, 7]),
    ("block", "child_outputs", [1, 1, 1]),
]


@pytest.mark.parametrize(
    ("layout", "name", "value"),
    [(layout, *case) for layout in LAYOUT_FIELDS for case in ANY_LAYOUT] + OF_A_LAYOUT,
)
def test_values_out_of_range_are_named(layout: str, name: str, value: object) -> None:
    message = {"up_pruned": "up_values|up_pruned", "down_pruned": "down_values"}.get(name, name)
    with pytest.raises(CheckpointError, match=message) as caught:
        BlockSpec.from_dict({**fields_of(layout), name: value})
    assert "'mlp'" in str(caught.value)


def test_partitioned_outputs_may_not_outnumber_the_outputs() -> None:
    fields = fields_of("block", fan_out="partition")
    with pytest.raises(CheckpointError, match="child_outputs"):
        BlockSpec.from_dict({**fields, "child_outputs": [3, 4]})


@pytest.mark.parametrize("fields", [None, [], "mlp", 3])
def test_a_block_must_be_an_object(fields: Any) -> None:
    with pytest.raises(CheckpointError, match="must be an object"):
        BlockSpec.from_dict(fields)


def test_an_integer_coupling_is_a_number() -> None:
    spec = BlockSpec.from_dict({**fields_of("element"), "coupling": 1})
    assert spec.coupling == 1.0
    assert type(spec.coupling) is float


@pytest.mark.parametrize(
    ("tile_size", "tiles"),
    [(1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]), (2, [(0, 2), (2, 4), (4, 5)]), (5, [(0, 5)])],
)
def test_the_last_tile_may_be_smaller(tile_size: int, tiles: list[tuple[int, int]]) -> None:
    spec = make_case("gated", layout="block", tile_size=tile_size).spec
    assert list(spec.tiles) == tiles
    assert make_case("gated").spec.tiles == ((0, 5),)
