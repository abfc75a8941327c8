from __future__ import annotations

import pytest
import torch

from closing.holding import Held, held, shake
from fpe_hf.closing.compete import prune
from fpe_hf.closing.moves import move
from fpe_hf.draws import Draws


def readers(model: Held) -> torch.Tensor:
    return torch.cat([up.by_child(up.mask) for up in model.block.ups]).any(0).sum(1)


@pytest.mark.parametrize("kind", ["plain", "gated", "halves", "interleaved"])
@pytest.mark.parametrize("by", ["gradient", "random"])
def test_as_many_come_as_go_and_children_stay_apart(kind: str, by: str) -> None:
    model = held(kind, d=12, h=9, o=10)
    shake(model, 0, 1.0)
    prune(model.block, 1.0, 3)
    block = model.block
    alive = sum(int(layer.mask.sum()) for layer in block.layers)
    for turn in range(3):
        model(torch.randn(8, 12)).square().sum().backward()
        before = [(layer.mask.clone(), layer.weight.detach().clone()) for layer in block.layers]
        came = move(block, 0.3, Draws(turn) if by == "random" else None)
        assert sum(int(layer.mask.sum()) for layer in block.layers) == alive
        assert int(readers(model).max()) <= 1
        gone = torch.cat(
            [w[m & ~layer.mask].abs() for (m, w), layer in zip(before, block.layers, strict=True)]
        )
        stayed = torch.cat(
            [
                layer.weight[layer.mask & ~new].abs()
                for layer, new in zip(block.layers, came, strict=True)
            ]
        )
        assert gone.max() <= stayed.min()
        assert any(
            (layer.mask & ~mask).any()
            for layer, (mask, _) in zip(block.layers, before, strict=True)
        )
        for layer, new in zip(block.layers, came, strict=True):
            assert not layer.weight[new].any()
        shake(model, turn + 1)
        for layer in block.layers:
            layer.kill()


def test_those_with_the_largest_gradients_come() -> None:
    model = held(h=1, o=3, d=6, alpha=2)
    prune(model.block, 1.0, 3)
    down = model.block.down
    for layer in model.block.layers:
        layer.weight.grad = torch.zeros_like(layer.weight)
    dead = (~down.mask).nonzero()[0].tolist()
    assert down.weight.grad is not None
    down.weight.grad[tuple(dead)] = 5.0
    move(model.block, 0.2, None)
    assert down.mask[tuple(dead)]
