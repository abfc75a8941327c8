"""Widened experts whose matrices are stacked in parameters.

The module that hosts the parameters keeps its forward. Its packed parameters keep their names;
while it runs, dense tensors of the shapes it expects stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..belongings import mark_like
from .base import FPELayer
from .subclass import Forward, give, is_given, own_class, take_back

PREFIX = "fpe_"
"""Beside a host's parameter `x`, its submodule `fpe_x` holds the index buffers and the rest."""

EXPERTS_STOCKS = ("experts", "transposed_experts")
"""Stocks (see `fpe_hf.linear`) of parameters `[experts, out, in]` and `[experts, in, out]`."""


def move_in(host: nn.Module, layer: FPELayer, weight: str, bias: str | None) -> None:
    """Replaces a host's stacked parameters by the packed ones of a layer.

    Args:
        host: The module.
        layer: The layer.
        weight: Name in the host of the stacked matrices.
        bias: Name in the host of the bias that goes with them.
    """
    if not is_given(host):
        give(host, _forward)
    layer.train(host.training)
    names = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, parameter in layer.named_parameters():
        old = host._parameters[names.get(name, weight)]
        if old is not None:
            mark_like(old, parameter)
    layer.move_in(host, names)
    host.add_module(PREFIX + weight, layer)


def move_out(host: nn.Module) -> None:
    """Takes the layers out of a host; its packed parameters stay to be replaced."""
    for name, _ in list(_layers(host)):
        del host._modules[PREFIX + name]
    take_back(host, _forward)


def _layers(host: nn.Module) -> Iterator[tuple[str, FPELayer]]:
    """The layers that live in a host, with the names of their matrices there."""
    for name, module in host._modules.items():
        if isinstance(module, FPELayer) and name.startswith(PREFIX):
            yield name.removeprefix(PREFIX), module


def _forward(host: Any, stock: Forward, *args: Any, **kwargs: Any) -> Any:
    """Runs a host's own forward on a copy of it in which dense tensors stand in: each call has its
    own, so that calls in several threads do not meet."""
    if torch.compiler.is_compiling():  # traced once, and copies cannot be traced
        dense = _dense(host)
        host.__dict__.update(dense)
        try:
            return stock(host, *args, **kwargs)
        finally:
            for name in dense:
                del host.__dict__[name]
    stand_in = object.__new__(own_class(host))  # neither hooks of copying nor parametrizations
    stand_in.__dict__.update(host.__dict__)
    dense = _dense(host)
    own = {name: tensor for name, tensor in host._parameters.items() if name not in dense}
    stand_in.__dict__.update(dense, _parameters=own)
    return stock(stand_in, *args, **kwargs)


def _dense(host: nn.Module) -> dict[str, Tensor]:
    """The dense tensors that stand in for a host's packed parameters, by name."""
    found = {}
    for weight, layer in _layers(host):
        # Called, not asked, so that hooks may bring its tensors from where they are offloaded.
        dense, bias = layer()
        found[weight] = dense.mT if layer.stock == "transposed_experts" else dense
        if bias is not None:
            found[layer.host_names["bias"]] = bias
    return found
