from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.config import BIASES, FAN_OUTS, LAYOUTS, OVERRIDABLE, PURPOSES, FPEConfig
from fpe_hf.errors import ConfigError

WORDS = st.lists(st.text(max_size=8), max_size=3)


@st.composite
def settings_of_a_block(draw: st.DrawFn) -> dict[str, Any]:
    layout = draw(st.sampled_from(LAYOUTS))
    tile_sizes = st.none() if layout == "element" else st.none() | st.integers(1, 10**6)
    fan_out = draw(st.sampled_from(FAN_OUTS))
    coupling, learn = draw(st.just(0.0) | st.floats(0.0, 1.0)), draw(st.booleans())
    may_open = layout == "element" and not coupling and not learn
    learned = ["learned"] if may_open and fan_out == "replicate" else []
    return {
        "alpha": draw(st.integers(2, 256)),
        "split": draw(st.sampled_from(["random", "feature", *learned])),
        "fan_out": fan_out,
        "layout": layout,
        "tile_size": draw(tile_sizes),
        "purpose": draw(st.sampled_from(PURPOSES)),
        "coupling": coupling,
        "learn_coupling": learn,
        "budget": draw(st.floats(0.05, 1.0)),
        "open": may_open and draw(st.booleans()),
        "bias": draw(st.sampled_from(BIASES)),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@st.composite
def configs(draw: st.DrawFn) -> FPEConfig:
    return FPEConfig(
        **draw(settings_of_a_block()),
        targets=draw(st.none() | WORDS),
        exclude=draw(WORDS),
        overrides=draw(st.dictionaries(st.text(max_size=8), settings_of_a_block(), max_size=2)),
    )


def test_defaults_are_the_papers_in_the_fastest_layout() -> None:
    config = FPEConfig()
    assert (config.alpha, config.split, config.fan_out) == (2, "random", "replicate")
    assert (config.layout, config.coupling, config.bias) == ("auto", 0.0, "shared")
    assert not config.learn_coupling


@given(configs())
def test_json_round_trip(config: FPEConfig) -> None:
    assert FPEConfig.from_json(config.to_json()) == config
    assert FPEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


REJECTED = [
    ("alpha", 1, "2 to 256"),
    ("alpha", 257, "1 to 256"),
    ("alpha", 2.0, "an integer"),
    ("alpha", True, "an integer"),
    ("alpha", "2", "an integer"),
    ("split", "rows", "'feature', 'learned', 'random'"),
    ("split", None, "'feature', 'learned', 'random'"),
    ("split", ["random"], "'feature', 'learned', 'random'"),
    ("fan_out", "copy", "'replicate', 'partition'"),
    ("fan_out", None, "'replicate', 'partition'"),
    ("layout", "csr", "'element', 'block'"),
    ("layout", [], "'element', 'block'"),
    ("purpose", "speed", "'training', 'serving'"),
    ("purpose", None, "'training', 'serving'"),
    ("bias", "none", "'shared', 'child'"),
    ("bias", False, "'shared', 'child'"),
    ("coupling", -0.1, "0.0"),
    ("coupling", 1.1, "1.0"),
    ("coupling", float("nan"), "0.0"),
    ("coupling", "1", "a number from 0.0 to 1.0"),
    ("coupling", True, "a number from 0.0 to 1.0"),
    ("learn_coupling", 1, "True or False"),
    ("learn_coupling", None, "True or False"),
    ("open", 1, "True or False"),
    ("budget", 0.0, "0.05 to 1.0"),
    ("budget", 1.5, "0.05 to 1.0"),
    ("budget", float("nan"), "0.05 to 1.0"),
    ("budget", "1", "a number from 0.05 to 1.0"),
    ("tile_size", 0, "an integer from 1"),
    ("tile_size", 8.0, "an integer from 1"),
    ("tile_size", 8, "layout='block'"),
    ("seed", -1, "an integer from 0"),
    ("seed", 2**63, "an integer from 0"),
    ("seed", 0.5, "an integer from 0"),
    ("targets", 3, "a list of names or patterns"),
    ("targets", ["a", 3], "a list of names or patterns"),
    ("exclude", None, "a list of names or patterns"),
    ("exclude", {"a": 1}, "a list of names or patterns"),
    ("overrides", None, "must map patterns to fields"),
    ("overrides", [("a", {})], "must map patterns to fields"),
]


@pytest.mark.parametrize(("field", "value", "accepted"), REJECTED)
def test_bad_values_are_named_with_what_is_accepted(
    field: str, value: object, accepted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        FPEConfig(**{field: value})  # type: ignore[arg-type]
    assert f"{field}={value!r}" in str(caught.value)
    assert accepted in str(caught.value)


def test_every_field_is_validated() -> None:
    assert {field for field, *_ in REJECTED} == {f.name for f in dataclasses.fields(FPEConfig)}


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"split": "randm"}, "random"),
        ({"fan_out": "partitioned"}, "partition"),
        ({"layout": "blok"}, "block"),
        ({"bias": "chidl"}, "child"),
        ({"overrides": {"a": {"alhpa": 4}}}, "alpha"),
        ({"alhpa": 4}, "alpha"),
        ({"fanout": "replicate"}, "fan_out"),
    ],
)
def test_typos_are_answered_with_a_suggestion(fields: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{fix}'"):
        FPEConfig.from_dict(fields)


def test_unknown_field_is_named_with_those_accepted() -> None:
    with pytest.raises(ConfigError, match="'sparsity' is not a field of FPEConfig") as caught:
        FPEConfig().with_overrides(sparsity=0.5)
    assert all(field.name in str(caught.value) for field in dataclasses.fields(FPEConfig))


@pytest.mark.parametrize("text", ["{", "[1]", "3", '{"alpha": 1}'])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        FPEConfig.from_json(text)


def test_a_single_word_stands_for_a_list_of_one() -> None:
    config = FPEConfig(targets="layers.0", exclude=["head"])
    assert config.targets == ("layers.0",)
    assert config.exclude == ("head",)


def test_with_overrides_changes_only_what_it_is_given() -> None:
    config = FPEConfig(alpha=3, layout="block", tile_size=4)
    changed = config.with_overrides(alpha=4)
    assert changed == dataclasses.replace(config, alpha=4)
    assert config.with_overrides() == config
    element = config.with_overrides(layout="element", tile_size=None)
    assert (element.layout, element.tile_size) == ("element", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({3: {}}, "must map a pattern"),
        ({"a": 3}, "must map a pattern"),
        ({"a": {"targets": ["b"]}}, "cannot differ by block"),
        ({"a": {"alpha": 1}}, "alpha=1"),
        ({"a": {"split": []}}, r"split=\[\]"),
        ({"a": {"tile_size": 4}}, "needs layout='block'"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FPEConfig(overrides=overrides)


@given(configs(), settings_of_a_block())
def test_for_block_replaces_exactly_the_overridden_fields(
    config: FPEConfig, fields: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, overrides={"a": fields})
    own = config.for_block(["a"])
    assert {name: getattr(own, name) for name in OVERRIDABLE} == fields
    assert own.overrides == {}
    assert config.for_block([]) == dataclasses.replace(config, overrides={})


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"split": "learned", "layout": "block"}, "layout='element'"),
        ({"open": True, "layout": "block"}, "layout='element'"),
        ({"open": True, "coupling": 1.0}, "coupling=0.0"),
        ({"split": "learned", "learn_coupling": True}, "learn_coupling=False"),
        ({"split": "learned", "fan_out": "partition"}, "fan_out='replicate'"),
    ],
)
def test_what_does_not_go_with_an_open_budget(fields: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        FPEConfig(**fields)


def test_one_child_needs_a_smaller_budget() -> None:
    assert FPEConfig(alpha=1, budget=0.5).alpha == 1
    learned = FPEConfig(split="learned", overrides={"a": {"split": "random"}})
    assert learned.starts_open
    assert not learned.for_block(["a"]).starts_open


def test_later_overrides_win() -> None:
    config = FPEConfig(overrides={"a": {"alpha": 3, "seed": 1}, "b": {"alpha": 4}})
    own = config.for_block(["a", "b"])
    assert (own.alpha, own.seed) == (4, 1)


@pytest.mark.parametrize(
    ("base", "overrides", "expected"),
    [
        ({"layout": "block", "tile_size": 8}, [{"layout": "element"}], ("element", None)),
        ({"layout": "block", "tile_size": 8}, [{"tile_size": 4}], ("block", 4)),
        ({"layout": "block", "tile_size": 8}, [{"tile_size": None}], ("block", None)),
        ({}, [{"layout": "block", "tile_size": 4}], ("block", 4)),
        ({}, [{"layout": "block", "tile_size": 4}, {"layout": "element"}], ("element", None)),
        (
            {"layout": "block", "tile_size": 8},
            [{"layout": "element"}, {"layout": "block"}],
            ("block", 8),
        ),
    ],
)
def test_tile_size_goes_with_the_block_layout(
    base: dict[str, Any], overrides: list[dict[str, Any]], expected: tuple[str, int | None]
) -> None:
    patterns = [str(place) for place in range(len(overrides))]
    config = FPEConfig(**base, overrides=dict(zip(patterns, overrides, strict=True)))
    own = config.for_block(patterns)
    assert (own.layout, own.tile_size) == expected
