from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf.kernels.pointwise import ELEMENTWISE, Source, Step, evaluate, is_elementwise, sources

GATE, UP = Source("gate", 0), Source("up", 0)
ACTIVATED = Step(functional.silu, (GATE,), {"inplace": False})
PRODUCT = Step(Tensor.mul, (ACTIVATED, UP), {})


def test_sources_come_once_and_in_order() -> None:
    both = Step(Tensor.add, (PRODUCT, Step(Tensor.mul, (UP, GATE), {})), {})
    assert sources(both) == [GATE, UP]
    assert sources(UP) == [UP]


def test_evaluate_replays_the_steps() -> None:
    gate, up = torch.randn(2, 3, 4)
    found = evaluate(PRODUCT, [gate, up], [GATE, UP])
    assert torch.equal(found, functional.silu(gate) * up)
    assert evaluate(UP, [up], [UP]) is up


def test_what_is_used_twice_is_made_once() -> None:
    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    counted = Step(count, (UP,), {})
    square = Step(Tensor.mul, (counted, counted), {})
    assert torch.equal(evaluate(square, [torch.ones(2)], [UP]), torch.full((2,), 4.0))
    assert len(calls) == 1


def test_tensors_are_not_kept_by_a_cycle() -> None:
    import gc
    import weakref

    gc.disable()
    try:
        value = torch.randn(3)
        made = evaluate(PRODUCT, [value, value], [GATE, UP])
        gone = weakref.ref(made)
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_every_function_is_elementwise() -> None:
    """Each element of a result depends on the same element of the operands only."""
    x = torch.rand(3, 5) * 0.5 + 0.25  # where all of them are defined
    for function in ELEMENTWISE:
        found = None
        for more in ((), (0.5,), (x,), (0.25, 0.75)):
            try:
                found = function(x, *more)
            except (TypeError, RuntimeError):
                continue
            if isinstance(found, Tensor):
                break
        assert isinstance(found, Tensor), function
        swapped = [arg.flip(0) if isinstance(arg, Tensor) else arg for arg in more]
        torch.testing.assert_close(function(x.flip(0), *swapped), found.flip(0))


def test_what_is_not_elementwise_is_told_apart() -> None:
    assert is_elementwise(functional.gelu, (UP,), {"approximate": "tanh"})
    assert is_elementwise(Tensor.mul, (2.0, UP), {})
    assert not is_elementwise(functional.softmax, (UP,), {"dim": -1})
    assert not is_elementwise(functional.relu, (UP,), {"inplace": True})
    assert not is_elementwise(Tensor.mul, (UP, torch.ones(3)), {})
    assert not is_elementwise(Tensor.mul_, (UP, 2), {})
    assert not is_elementwise(nn.GELU(), (UP,), {})
