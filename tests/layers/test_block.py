from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fpe_hf.errors import CheckpointError
from fpe_hf.layers import BlockDown, BlockUp, FPELayer
from fpe_hf.layers.block import _kept, check_index
from planning.cases import make_case


def indices_of(layer: FPELayer) -> tuple[str, Tensor]:
    assert isinstance(layer, (BlockUp, BlockDown))
    name = "inputs" if isinstance(layer, BlockUp) else "outputs"
    index = getattr(layer, name)
    assert isinstance(index, Tensor)
    return name, index


@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_indices_are_found(fan_out: str, which: int) -> None:
    for value, message in ((200, "out of range"), (None, "twice in a tile")):
        case = make_case(d=9, h=6, layout="block", tile_size=2, fan_out=fan_out)
        layer = case.layers()[which]
        name, index = indices_of(layer)
        index[1, 0] = index[1, 1] if value is None else value
        with pytest.raises(CheckpointError, match=rf"'mlp\.x\.{name}' .*{message}"):
            layer.check("mlp.x")


def test_check_index_takes_each_row_by_itself() -> None:
    check_index("x", torch.tensor([[0, 2], [2, 0]], dtype=torch.uint8), 3)
    for bad in ([[0, 3]], [[-1, 0]], [[1, 0], [2, 2]]):
        with pytest.raises(CheckpointError, match="'x'"):
            check_index("x", torch.tensor(bad, dtype=torch.int16), 3)
    check_index("x", torch.empty(2, 0, dtype=torch.uint8), 3)


@pytest.mark.parametrize(
    ("d", "dtype"), [(256, torch.uint8), (257, torch.int16), (32_769, torch.int32)]
)
def test_indices_have_the_smallest_dtype(d: int, dtype: torch.dtype) -> None:
    up = make_case(d=d, h=1, o=2, layout="block", fan_out="partition").layers()[0]
    name, index = indices_of(up)
    assert index.dtype == dtype
    assert sorted(index[0].tolist()) == list(range(d))
    assert up.state_dict()[name].dtype == dtype
    up.check("mlp")


@pytest.mark.parametrize("tile_size", [1, 3, None])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_arithmetic_is_that_of_the_weights(fan_out: str, tile_size: int | None) -> None:
    """One multiply-add for each weight and row of input: no more than the dense parent's."""
    case = make_case("gated", 12, 7, 12, layout="block", fan_out=fan_out, tile_size=tile_size)
    tokens, spent = 5, 0
    for layer in case.layers():
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(tokens, layer.in_features))
        assert counter.get_total_flops() == 2 * tokens * layer.weight.numel()
        spent += layer.weight.numel()
    assert spent <= sum(w.numel() for w in (*case.parent.ups, case.parent.down))


@torch.no_grad()
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_views_that_are_kept_follow_every_change(fan_out: str) -> None:
    case = make_case(d=9, h=6, o=7, layout="block", alpha=3, tile_size=2, fan_out=fan_out)
    for layer in case.layers():
        name, index = indices_of(layer)

        def check(layer: FPELayer = layer) -> None:
            x = torch.randn(1, layer.in_features, dtype=layer.weight.dtype)
            expected = torch.nn.functional.linear(x, layer.dense_weight(), layer.dense_bias())
            torch.testing.assert_close(layer(x), expected)

        check()
        layer.weight.mul_(2)  # an optimizer's step
        check()
        index.copy_(index.flip(0))  # load_state_dict
        check()
        layer.weight.data = torch.randn_like(layer.weight)
        check()
        layer._buffers[name] = index.flip(0)
        check()
        check(copy.deepcopy(layer))
        layer.double()
        check()


def test_kept_views_keep_no_layer_alive() -> None:
    up = make_case(d=9, h=6, o=7, layout="block").layers()[0]
    with torch.no_grad():
        up(torch.randn(1, 9))
    assert up in _kept
    gone = weakref.ref(up)
    del up
    gc.collect()
    assert gone() is None


def test_kept_views_do_not_reach_the_graph() -> None:
    up = make_case(d=9, h=6, o=7, layout="block").layers()[0]
    x = torch.randn(1, 9)
    with torch.no_grad():
        expected = up(x)
    found = up(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert up.weight.grad is not None
    assert bool(up.weight.grad.any())
