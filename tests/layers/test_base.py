"""What both layouts share: state dicts, checksums, copies and types."""

from __future__ import annotations

import copy
import io
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fpe_hf.errors import CheckpointError
from fpe_hf.layers import FPELayer, empty_layers
from fpe_hf.layers.base import are_apart
from fpe_hf.layers.checksum import UNVERIFIED
from layers.reference import up_places
from planning.cases import KINDS, Case, cases, make_case

LAYOUTS: dict[str, dict[str, Any]] = {
    "element": {"layout": "element"},
    "element-feature": {"layout": "element", "split": "feature"},
    "block": {"layout": "block", "tile_size": 2},
}
COMBINATIONS = list(product(LAYOUTS, ["replicate", "partition"]))


def layout_case(layout: str, fan_out: str = "replicate", **options: Any) -> Case:
    return make_case(d=12, alpha=3, fan_out=fan_out, **LAYOUTS[layout], **options)


def empty(case: Case, dtype: torch.dtype, device: str) -> list[FPELayer]:
    stocks = dict.fromkeys((*case.block.ups, case.block.down), "linear")
    return list(empty_layers(case.spec, stocks, dtype, device).values())


def run(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    assert isinstance(layer, FPELayer)
    output: Tensor = layer(torch.randn(4, layer.in_features, generator=generator).to(dtype))
    return output.clone()  # made now, not when it is looked at


@given(cases())
def test_parameters_are_the_non_zeros_and_nothing_else(case: Case) -> None:
    parameters = [p for layer in case.layers() for p in layer.parameters()]
    assert sum(parameter.numel() for parameter in parameters) == case.spec.nonzeros
    assert case.spec.nonzeros <= sum(tensor.numel() for tensor in case.parent.numbers)
    names = {name for layer in case.layers() for name, _ in layer.named_parameters()}
    assert names <= {"weight", "bias", "coupling"}


@given(cases(layout="element", zeros=0.3, d=20, o=16, learn_coupling=False))
def test_zeros_of_the_parent_are_not_stored(case: Case) -> None:
    layers = case.layers()
    assert all(bool(layer.weight.all()) for layer in layers)
    found = sum(int(p.count_nonzero()) for layer in layers for p in layer.parameters())
    assert found <= sum(int(tensor.count_nonzero()) for tensor in case.parent.numbers)


@given(cases())
def test_siblings_share_no_input(case: Case) -> None:
    spec = case.spec
    *ups, _ = case.layers()
    for index, up in enumerate(ups):
        expected = torch.zeros(spec.alpha, spec.parents, spec.in_features, dtype=torch.bool)
        for place in up_places(case.plan, index):
            expected[place.child, place.parent, place.column] = True
        assert int(expected.sum(0).max()) <= 1  # I2: siblings share no input
        read = int(expected.any(0).sum()) / expected[0].numel()
        assert up.coverage() == pytest.approx(read)
    assert are_apart(ups)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_state_dict_round_trip(layout: str, fan_out: str, kind: str) -> None:
    case = layout_case(layout, fan_out, kind=kind, learn_coupling=True)
    for layer, other in zip(case.layers(), empty(case, torch.float32, "cpu"), strict=True):
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(run(other), run(layer))
        assert same_state(other, layer)


def same_state(one: FPELayer, other: FPELayer) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_meta_layers_take_a_state_dict_by_assignment(layout: str, fan_out: str) -> None:
    case = layout_case(layout, fan_out)
    for layer, other in zip(case.layers(), empty(case, torch.float32, "meta"), strict=True):
        state = layer.state_dict()
        checksum = state["checksum"].tolist()
        other.load_state_dict(state, assign=True)
        assert torch.equal(run(other), run(layer))
        assert state["checksum"].tolist() == checksum  # the caller's tensors stay as they are


@pytest.mark.parametrize(
    ("layout", "fan_out", "up", "down"),
    [
        ("element", "replicate", ["keep"], ["keep"]),
        ("element", "partition", [], []),  # all that is drawn follows from the seed
        ("element-feature", "partition", ["owner"], []),
        ("block", "replicate", ["inputs"], ["outputs"]),
        ("block", "partition", ["inputs"], ["outputs"]),
    ],
)
def test_state_dict_holds_what_the_format_says(
    layout: str, fan_out: str, up: list[str], down: list[str]
) -> None:
    for layer, indices in zip(layout_case(layout, fan_out).layers(), (up, down), strict=True):
        state = layer.state_dict()
        assert sorted(state) == sorted(["weight", "bias", "checksum", *indices])
        assert all(not state[name].is_floating_point() for name in indices)
        assert sorted(layer.stored()) == sorted(state)


def test_a_block_that_writes_all_outputs_in_order_stores_no_outputs() -> None:
    down = make_case(d=40, o=3, layout="block").layers()[-1]
    assert sorted(down.state_dict()) == ["bias", "checksum", "weight"]


OTHER_SHAPES = [{"fan_out": "partition"}, {"bias": "child"}, {"d": 13}, {"o": 7}, {"h": 6}]


@pytest.mark.parametrize(
    ("layout", "other"),
    [*product(["element", "block"], OTHER_SHAPES), ("element", {"alpha": 2})],
    ids=str,
)
def test_a_state_dict_from_another_plan_is_refused(layout: str, other: dict[str, Any]) -> None:
    options = {"d": 12, "alpha": 3, "layout": layout}
    block = nn.ModuleList(make_case(**options).layers())
    stranger = nn.ModuleList(make_case(**{**options, **other}).layers())
    before = block.state_dict()
    with pytest.raises(CheckpointError, match=r"tensor '[01]\.\w+' has shape .* another plan"):
        block.load_state_dict(stranger.state_dict())
    assert torch.equal(block.state_dict()["0.weight"], before["0.weight"])


SAME_SHAPES = [
    ("element", "replicate", {"seed": 1}),
    ("element", "partition", {"seed": 1}),
    ("element", "partition", {"coupling": 1.0}),
    ("block", "partition", {"alpha": 2}),
]


@pytest.mark.parametrize(("layout", "fan_out", "other"), SAME_SHAPES, ids=str)
def test_a_plan_of_the_same_shapes_is_told_apart(
    layout: str, fan_out: str, other: dict[str, Any]
) -> None:
    options = {"d": 12, "o": 12, "alpha": 3, "layout": layout, "fan_out": fan_out}
    block = make_case(**options).layers()[0]
    stranger = make_case(**{**options, **other}).layers()[0]
    state = stranger.state_dict()
    if state["weight"].shape != block.weight.shape:
        pytest.skip("pruning gave other shapes")
    with pytest.raises(CheckpointError, match=r"'checksum' has another mark.*another plan"):
        block.load_state_dict(state)
    state["checksum"] = torch.tensor(block.unsummed)  # as a distributed optimizer saves it
    block.load_state_dict(state)
    state["checksum"].zero_()
    with pytest.raises(CheckpointError, match="damaged"):
        block.load_state_dict(state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checksum_is_in_the_state_dict_and_follows_the_weights(layout: str) -> None:
    for layer in layout_case(layout, learn_coupling=True).layers():
        before = int(layer.state_dict()["checksum"][0])
        assert before != UNVERIFIED
        assert int(layer.compute_checksum()[0]) == before
        for name, parameter in layer.named_parameters():
            old = parameter.detach().clone()
            parameter.data[0] += 1
            assert int(layer.state_dict()["checksum"][0]) != before, name
            parameter.data.copy_(old)
        assert int(layer.state_dict()["checksum"][0]) == before


@given(st.sampled_from(COMBINATIONS), st.data())
def test_checksum_covers_every_byte_stored_or_drawn(
    combination: tuple[str, str], data: st.DataObject
) -> None:
    layer = data.draw(st.sampled_from(layout_case(*combination).layers()))
    before = int(layer.compute_checksum()[0])
    tensors = {**dict(layer.named_parameters()), **layer.index_buffers()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    raw = tensors[name].detach().view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    layer.seal()
    assert int(layer.compute_checksum()[0]) != before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_meta_layers_have_no_checksum(layout: str) -> None:
    for layer in empty(layout_case(layout), torch.float32, "meta"):
        assert layer.compute_checksum().is_meta
        assert "checksum" in layer.state_dict()


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_deepcopy_is_independent(layout: str, fan_out: str) -> None:
    for layer in layout_case(layout, fan_out).layers():
        before = run(layer)
        twin = copy.deepcopy(layer)
        assert torch.equal(run(twin), before)
        with torch.no_grad():
            twin.weight.zero_()
        assert torch.equal(run(layer), before)
        assert not torch.equal(run(twin), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_casting_changes_the_numbers_and_not_the_indices(
    layout: str, fan_out: str, dtype: torch.dtype
) -> None:
    for layer in layout_case(layout, fan_out, learn_coupling=True, coupling=0.3).layers():
        expected = run(layer)
        indices = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        cast = {torch.float16: layer.half, torch.bfloat16: layer.bfloat16}
        cast.get(dtype, layer.double)()
        assert all(parameter.dtype == dtype for parameter in layer.parameters())
        for name, buffer in layer.named_buffers():
            assert buffer.dtype == indices[name].dtype
            assert torch.equal(buffer, indices[name])
        output = run(layer, dtype)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_layers_can_be_moved(layout: str, fan_out: str) -> None:
    """No tensor of a built layer is left on the meta device."""
    for layer in layout_case(layout, fan_out).layers():
        tensors = (*layer.parameters(), *layer.buffers())
        assert all(tensor.device.type == "cpu" for tensor in tensors)
        assert layer.to("cpu") is layer


@pytest.mark.parametrize("coupling", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_autocast_gives_bfloat16(layout: str, fan_out: str, coupling: float) -> None:
    for layer in layout_case(layout, fan_out, coupling=coupling).layers():
        expected = run(layer)
        with torch.autocast("cpu", torch.bfloat16):
            output = run(layer)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)
        output.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


def test_a_layer_says_what_it_is() -> None:
    text = repr(layout_case("block").layers()[0])
    for word in ("in_features=12", "out_features=15", "alpha=3", "layout='block'", "nonzeros="):
        assert word in text


@pytest.mark.parametrize("coupling", [0.0, 1.0])
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_no_tokens_are_no_error(layout: str, fan_out: str, coupling: float) -> None:
    """Experts and adapters are called without any."""
    for layer in layout_case(layout, fan_out, coupling=coupling).layers():
        assert layer(torch.zeros(0, layer.in_features)).shape == (0, layer.out_features)
