from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fpe_hf.kernels import native
from fpe_hf.kernels.activations import (
    Activation,
    Kind,
    activate,
    activate_back,
    recognise,
    usable,
)
from fpe_hf.kernels.pointwise import Node, Source, Step

needs_compiler = pytest.mark.skipif(
    native.library("activations") is None, reason="no C compiler for activations.c"
)

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


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Errors as large as those of PyTorch's own float32 functions."""
    scale = expected.abs().clamp(min=1.0)
    assert float(((found.double() - expected) / scale).abs().max()) < 2e-6


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(FUNCTIONS)),
    st.booleans(),
    st.integers(1, 300),
    st.sampled_from([1, 4, 20]),
)
def test_values_and_gradients(name: str, gated: bool, count: int, spread: float) -> None:
    function, kind, scale = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(count)
    pre, up, upstream = torch.randn(3, count, generator=generator) * spread
    own = Activation(kind, scale, PRE, UP if gated else None)
    values = {PRE: pre, UP: up}
    wide = [value.double().requires_grad_() for value in (pre, up)]
    expected = function(wide[0]) * (wide[1] if gated else 1)
    expected.backward(upstream.double())

    found = activate(own, values)
    assert_near(found, expected.detach())
    again, grads = activate_back(own, values, upstream)
    assert_near(again, expected.detach())
    assert grads.keys() == ({PRE, UP} if gated else {PRE})
    for source, reference in zip((PRE, UP), wide, strict=True):
        if source in grads:
            assert reference.grad is not None
            assert_near(grads[source], reference.grad)


@needs_compiler
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_extremes(name: str) -> None:
    function, kind, scale = FUNCTIONS[name]
    pre = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e4, -1e4, 1e18, -1e18, torch.nan])
    own = Activation(kind, scale, PRE)
    found = activate(own, {PRE: pre})
    assert_near(found[:-1], function(pre[:-1].double()))
    _, grads = activate_back(own, {PRE: pre}, torch.ones_like(pre))
    assert bool(torch.isfinite(grads[PRE][:-3]).all())
    assert bool(found[-1].isnan())


@needs_compiler
def test_threads_change_nothing() -> None:
    pre = torch.randn(10_001)
    own = Activation(Kind.GELU, 1.0, PRE)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(activate(own, {PRE: pre}))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    own, pre = Activation(Kind.GELU, 1.0, PRE), torch.randn(4, 6)
    assert not usable(None, [pre])
    assert not usable(own, [pre.double()])
    assert not usable(own, [pre.t()])
    assert not usable(own, [pre, pre[:1]])
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not usable(own, [pre])
