"""Ways of torch to hand over or read a module: as with stock modules, or a typed error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, fx, nn

import fpe_hf
from fpe_hf.errors import ExportError, InputShapeError
from tiny_models import tiny_model
from tiny_moe import tiny_mixture

COMBINATIONS = list(product(["element", "block"], ["replicate", "partition"]))


class Residual(nn.Module):
    """An MLP that nothing recognizes as one, and a sum that wants equal raggedness."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(40, 600), nn.GELU(), nn.Linear(600, 40)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 600), nn.GELU(), nn.Linear(600, 40))


def widened(parent: nn.Module, layout: str, fan_out: str) -> nn.Module:
    x = torch.randn(2, 40)
    return fpe_hf.widen(parent, example_inputs=(x,), layout=layout, fan_out=fan_out)


@pytest.mark.parametrize("kind", [torch.strided, torch.jagged])
@pytest.mark.parametrize("make", [chain, Residual])
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_nested_tensors(
    layout: str, fan_out: str, make: Callable[[], nn.Module], kind: torch.layout
) -> None:
    model = widened(make(), layout, fan_out)
    parts = [torch.randn(size, 40) for size in (30, 1, 50)]
    expected = [model(part) for part in parts]
    sum(part.sum() for part in expected).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    for trained in (False, True):
        model.zero_grad()
        with torch.set_grad_enabled(trained), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
            made = model(torch.nested.nested_tensor(parts, layout=kind))
        assert made.layout is kind
        for own, whole in zip(made.unbind(), expected, strict=True):
            torch.testing.assert_close(own, whole)
    sum(part.sum() for part in made.unbind()).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["element", "block"])
def test_nested_tensors_that_stock_modules_refuse(layout: str) -> None:
    model = widened(chain(), layout, "replicate")
    apart = torch.nested.narrow(
        torch.randn(2, 9, 40), 1, torch.tensor([0, 1]), torch.tensor([3, 4]), layout=torch.jagged
    )
    parts = [torch.randn(3, 2, 40), torch.randn(5, 2, 40)]
    turned = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    for x in (apart, turned):
        with pytest.raises(ValueError, match="contiguous"):
            chain()(x)
        with pytest.raises(InputShapeError, match="contiguous"):
            model(x)


@pytest.mark.parametrize("make", [chain, Residual])
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_fx_sees_projections_as_it_sees_linear_modules(
    layout: str, fan_out: str, make: Callable[[], nn.Module]
) -> None:
    stock = fx.symbolic_trace(nn.Sequential(make()))
    model = widened(make(), layout, fan_out)
    traced = fx.symbolic_trace(nn.Sequential(model))
    assert [(n.op, n.target) for n in traced.graph.nodes] == [
        (n.op, n.target) for n in stock.graph.nodes
    ]
    x = torch.randn(64, 40)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("layout", ["element", "block"])
def test_scripting_is_refused_with_what_to_do(layout: str) -> None:
    models: list[nn.Module] = [
        widened(chain(), layout, "replicate"),
        widened(Residual(), layout, "replicate"),
        fpe_hf.widen(tiny_model("bert"), layout=layout),
        fpe_hf.widen(tiny_mixture("mixtral"), layout=layout),
    ]
    for model in models:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            with pytest.raises(ExportError, match=r"cannot be scripted.*to_dense"):
                torch.jit.script(model)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_what_is_to_be_done_instead_of_scripting(layout: str, fan_out: str) -> None:
    model, x = widened(chain(), layout, fan_out), torch.randn(64, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for made in (
            torch.jit.script(fpe_hf.to_dense(model)),
            torch.jit.trace(model, x),
            torch.export.export(model, (x,)).module(),
        ):
            torch.testing.assert_close(made(x), model(x))
