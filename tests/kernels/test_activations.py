from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fpe_hf.kernels.activations import (
    Activation,
    Kind,
    recognise,
)
from fpe_hf.kernels.pointwise import Node, Source, Step

PRE, UP = Source("gate", 0), Source("up", 0)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Kind, float]] = {
    "relu": (functional.relu, Kind.RELU, 1.0),
    "silu": (functional.silu, Kind.SIGMOID_LINEAR, 1.0),
    "quick_gelu": (quick_gelu, Kind.SIGMOID_LINEAR, 1.702),
    "gelu": (functional.gelu, Kind.GELU, 1.0),
    "gelu_tanh": (tanh_gelu, Kind.GELU_TANH, 1.0),
}


def step(function: Any, *args: Any, **kwargs: Any) -> Step:
    return Step(function, args, kwargs)


def test_recognise() -> None:
    sigmoid = step(torch.sigmoid, step(Tensor.mul, PRE, 1.702))
    for node, kind, scale in [
        (step(functional.gelu, PRE), Kind.GELU, 1.0),
        (step(functional.gelu, PRE, approximate="tanh"), Kind.GELU_TANH, 1.0),
        (step(functional.silu, PRE, inplace=False), Kind.SIGMOID_LINEAR, 1.0),
        (step(Tensor.mul, PRE, sigmoid), Kind.SIGMOID_LINEAR, 1.702),
        (step(Tensor.mul, step(Tensor.sigmoid, PRE), PRE), Kind.SIGMOID_LINEAR, 1.0),
        (step(functional.relu, PRE, inplace=False), Kind.RELU, 1.0),
    ]:
        assert recognise(node) == Activation(kind, scale, PRE)
        gated = Activation(kind, scale, PRE, UP)
        assert recognise(step(Tensor.mul, node, UP)) == gated
        assert recognise(step(torch.mul, UP, node)) == gated


@pytest.mark.parametrize(
    "node",
    [
        PRE,
        step(functional.elu, PRE),
        step(Tensor.mul, PRE, UP),
        step(Tensor.mul, step(functional.gelu, PRE), PRE),
        step(Tensor.mul, step(functional.gelu, PRE), 2.0),
        step(Tensor.add, step(functional.gelu, PRE), UP),
        step(functional.gelu, step(Tensor.mul, PRE, 2.0)),
        step(Tensor.mul, PRE, step(torch.sigmoid, UP)),
        step(Tensor.mul, PRE, step(torch.sigmoid, step(Tensor.mul, PRE, PRE))),
        step(functional.leaky_relu, PRE, 0.1),
        step(functional.relu6, PRE),
    ],
)
def test_anything_else_is_not_recognised(node: Node) -> None:
    assert recognise(node) is None
