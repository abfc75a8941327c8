"""Training keeps the budget: structural zeros do not exist, so no optimizer can revive them."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn

from layers.reference import DenseReference
from planning.cases import make_case

LAYOUTS = {
    "element": {"layout": "element"},
    "block": {"layout": "block", "tile_size": 2},
}


@pytest.mark.parametrize("learn_coupling", [False, True])
@pytest.mark.parametrize(
    ("layout", "fan_out", "bias"),
    list(product(LAYOUTS, ["replicate", "partition"], ["shared", "child"])),
)
def test_fifty_steps_keep_the_budget(
    layout: str, fan_out: str, bias: str, learn_coupling: bool
) -> None:
    options = {**LAYOUTS[layout], "fan_out": fan_out, "bias": bias}
    case = make_case(d=12, h=7, o=8, alpha=3, learn_coupling=learn_coupling, **options)
    up, down = case.layers()
    model = nn.Sequential(up, nn.GELU(), down)
    before = [copy.deepcopy(layer.index_buffers()) for layer in (up, down)]
    starts = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=generator)
    target = torch.randn(64, 8, generator=generator)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert sum(int(p.count_nonzero()) for p in model.parameters()) <= case.spec.parent_nonzeros
    assert losses[-1] < losses[0]
    for parameter, start in zip(model.parameters(), starts, strict=True):
        assert not torch.equal(parameter, start)
    assert sum(parameter.numel() for parameter in model.parameters()) == case.spec.nonzeros
    for layer, index in zip((up, down), before, strict=True):
        torch.testing.assert_close(layer.index_buffers(), index)
        layer.check("mlp")
        # Zeros of the matrix are exactly those of the plan (with coupling 0, all but the own).
        marks = {
            name: torch.zeros_like(parameter) if name == "coupling" else torch.ones_like(parameter)
            for name, parameter in layer.named_parameters()
        }
        planned = DenseReference(case.plan, layer.index, marks).weight() != 0
        if not learn_coupling:
            assert torch.equal(layer.dense_weight() != 0, planned)


def test_resuming_with_the_optimizers_state_continues_as_if_never_stopped() -> None:
    """I4, on the layers alone."""
    case = make_case(d=12, h=7, o=8, layout="element", learn_coupling=True)

    def start() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        up, down = case.layers()
        model = nn.Sequential(up, nn.GELU(), down)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int) -> None:
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    whole, optimizer = start()
    train(whole, optimizer, 6)
    first, optimizer = start()
    train(first, optimizer, 3)
    second, second_optimizer = start()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(optimizer.state_dict())
    train(second, second_optimizer, 3)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
