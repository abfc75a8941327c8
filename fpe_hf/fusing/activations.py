"""The activations of models: which are known, and how PyTorch computes them in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers.subclass import own_class

_ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus,
    nn.Softsign, nn.Tanh,
)  # fmt: skip


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a known elementwise function without parameters of its own."""
    if getattr(module, "inplace", False) or next(module.parameters(), None) is not None:
        return False
    kind = own_class(module)
    return kind in _ELEMENTWISE or kind.__module__ == "transformers.activations"


@dataclass(frozen=True)
class Form:
    """An activation in few passes over memory.

    Attributes:
        new: Returns a new tensor; differentiable.
        in_place: Overwrites its argument and returns it; not differentiable.
    """

    new: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]


def _gelu(approximate: str) -> Form:
    def in_place(z: Tensor) -> Tensor:
        done: Tensor = torch.ops.aten.gelu_(z, approximate=approximate)
        return done

    return Form(lambda z: functional.gelu(z, approximate=approximate), in_place)


def _quick_gelu_(z: Tensor) -> Tensor:
    return z.mul_((1.702 * z).sigmoid_())


def _squared_relu_(z: Tensor) -> Tensor:
    return z.relu_().square_()


GELU, GELU_TANH = _gelu("none"), _gelu("tanh")
RELU = Form(functional.relu, torch.relu_)
SILU = Form(functional.silu, lambda z: functional.silu(z, inplace=True))
QUICK_GELU = Form(lambda z: z * torch.sigmoid(1.702 * z), _quick_gelu_)
SQUARED_RELU = Form(lambda z: functional.relu(z).square(), _squared_relu_)

_BY_NAME = {
    "AccurateGELUActivation": GELU_TANH,
    "FastGELUActivation": GELU_TANH,
    "GELUActivation": GELU,
    "GELUTanh": GELU_TANH,
    "NewGELUActivation": GELU_TANH,
    "QuickGELUActivation": QUICK_GELU,
    "ReLUSquaredActivation": SQUARED_RELU,
    "SiLUActivation": SILU,
}
"""Classes of `transformers.activations`. Spellings of one function differ by rounding alone."""


def form_of(activation: Any) -> Form | None:
    """How to compute an activation in few passes, or `None` if that is not known.

    Args:
        activation: A module (see `is_activation`), or anything else.
    """
    if not isinstance(activation, nn.Module):
        return None
    kind = own_class(activation)
    if kind is nn.GELU:
        return GELU_TANH if activation.approximate == "tanh" else GELU
    if kind in (nn.ReLU, nn.SiLU):
        return RELU if kind is nn.ReLU else SILU
    act = getattr(activation, "act", functional.gelu)  # GELUActivation and GELUTanh hold one
    if getattr(act, "func", act) is not functional.gelu:
        return None
    return _BY_NAME.get(kind.__name__) if kind.__module__ == "transformers.activations" else None
