from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from fpe_hf.kernels.activations import (
    Activation,
    Kind,
    recognise,
)
from fpe_hf.kernels.pointwise import Node, Source, Step
from fpe_hf.layers.hidden import Hidden
from planning.cases import make_case

PRE, UP = Source("gate", 0), Source("up", 0)


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
        (step(torch.square, step(Tensor.relu, PRE)), Kind.RELU_SQUARED, 1.0),
        (step(torch.pow, step(torch.relu, PRE), 2), Kind.RELU_SQUARED, 1.0),
    ]:
        assert recognise(node) == Activation(kind, scale, PRE)
        gated = Activation(kind, scale, PRE, UP)
        assert recognise(step(Tensor.mul, node, UP)) == gated
        assert recognise(step(torch.mul, UP, node)) == gated


SPELLED = {
    "gelu_python": Kind.GELU,
    "gelu_new": Kind.GELU_TANH,
    "gelu_fast": Kind.GELU_TANH,
    "gelu_pytorch_tanh": Kind.GELU_TANH,
    "quick_gelu": Kind.SIGMOID_LINEAR,
    "silu": Kind.SIGMOID_LINEAR,
    "relu2": Kind.RELU_SQUARED,
    "gelu": Kind.GELU,
    "relu": Kind.RELU,
}


@pytest.mark.parametrize("name", SPELLED)
def test_activations_of_transformers_are_recognised(name: str) -> None:
    hidden = make_case(layout="block").layers()[0](torch.randn(20, 7))
    assert isinstance(hidden, Hidden)
    activated = ACT2FN[name](hidden)
    assert isinstance(activated, Hidden)
    found = recognise(activated.node)
    assert found == Activation(SPELLED[name], 1.702 if name == "quick_gelu" else 1.0, hidden.node)


@pytest.mark.parametrize("name", ["mish", "laplace", "leaky_relu", "relu6", "sigmoid", "tanh"])
def test_others_are_not(name: str) -> None:
    activated = ACT2FN[name](make_case(layout="block").layers()[0](torch.randn(20, 7)))
    assert not isinstance(activated, Hidden) or recognise(activated.node) is None


TANH = step(torch.tanh, step(torch.mul, PRE, 0.79788456))


@pytest.mark.parametrize(
    "node",
    [
        PRE,
        step(torch.mul, step(torch.mul, PRE, 0.5), step(torch.add, TANH, 1.0)),
        step(torch.mul, step(torch.mul, PRE, 0.5), step(torch.add, TANH, 1.0, alpha=2)),
        step(torch.pow, step(torch.relu, PRE), 3),
        step(torch.pow, step(torch.relu, PRE), 0.5),
        step(torch.pow, 2.0, PRE),
        step(torch.mul, step(torch.relu, PRE), step(torch.relu, UP)),
        step(torch.div, 1.0, PRE),
        step(torch.div, step(torch.relu, PRE), 2.0),
        step(torch.mul, PRE, float("nan")),
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
