from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fpe_hf.errors import CheckpointError, InputShapeError
from fpe_hf.layers import BlockDown, BlockUp, FPELayer
from fpe_hf.layers.block import check_index
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


@pytest.mark.parametrize(("d", "dtype"), [(256, torch.uint8), (257, torch.int32)])
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
def test_every_change_of_a_tensor_is_followed(fan_out: str) -> None:
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
        layer.seal()
        check()
        layer.weight.data.mul_(2)  # no version counts this
        check()
        layer.weight.data = torch.randn_like(layer.weight)
        check()
        layer._buffers[name] = index.flip(0)
        check()
        check(copy.deepcopy(layer))
        layer.double()
        check()


@pytest.mark.parametrize("width", [0, 8, 10, 18])
def test_inputs_of_another_width_are_refused_as_by_linear(width: int) -> None:
    for layout in ("block", "element"):
        for layer in make_case("gated", 9, 6, 9, layout=layout).layers():
            own = width if width != layer.in_features else width + 1
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                torch.nn.Linear(layer.in_features, layer.out_features)(torch.randn(3, own))
            with pytest.raises(InputShapeError, match="shapes cannot be multiplied"):
                layer(torch.randn(3, own))
            with torch.no_grad(), pytest.raises(InputShapeError, match="block 'mlp' reads"):
                layer(torch.randn(own))
