from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from planning.cases import make_case

LAYOUTS: dict[str, dict[str, Any]] = {
    "element": {"layout": "element"},
    "block": {"layout": "block", "tile_size": 3},
}
COMBINATIONS = list(product(LAYOUTS, ["replicate", "partition"]))


def assert_compiles(backend: str, layout: str, fan_out: str, **options: Any) -> None:
    """One graph, and the outputs and gradients of the uncompiled chain."""
    torch._dynamo.reset()
    case = make_case(d=8, h=5, o=6, fan_out=fan_out, **LAYOUTS[layout], **options)
    up, down = case.layers()
    chain = nn.Sequential(up, nn.GELU(), down)
    x = torch.randn(4, 8)
    expected = chain(x)
    expected.sum().backward()
    gradients = [parameter.grad for parameter in chain.parameters()]
    chain.zero_grad()
    output = torch.compile(chain, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    for parameter, gradient in zip(chain.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
@pytest.mark.parametrize("options", [{}, {"coupling": 1.0}, {"learn_coupling": True}], ids=str)
def test_compiles_to_one_graph(layout: str, fan_out: str, options: dict[str, Any]) -> None:
    assert_compiles("aot_eager", layout, fan_out, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_compiles_with_inductor(layout: str, fan_out: str) -> None:
    assert_compiles("inductor", layout, fan_out, coupling=0.3)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_exports_with_any_number_of_tokens(layout: str, fan_out: str) -> None:
    case = make_case(d=8, h=6, o=6, fan_out=fan_out, **LAYOUTS[layout])
    chain = nn.Sequential(*case.layers())
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(chain, (torch.randn(4, 8),), dynamic_shapes=({0: tokens},))
    for count in (2, 7, 300):
        x = torch.randn(count, 8)
        torch.testing.assert_close(program.module()(x), chain(x))


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_compiles_before_it_ever_ran(layout: str, fan_out: str) -> None:
    torch._dynamo.reset()
    case = make_case(d=8, h=6, o=6, fan_out=fan_out, **LAYOUTS[layout])
    chain = nn.Sequential(*case.layers())
    x = torch.randn(4, 8)
    found = torch.compile(chain, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, chain(x))
