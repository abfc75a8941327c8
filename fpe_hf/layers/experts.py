"""Widened experts whose matrices are stacked in parameters.

The module that hosts the parameters keeps its class and its forward. Its packed parameters keep
their names; while it runs, dense tensors of the shapes it expects stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..belongings import mark_like
from .base import FPELayer

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
    if next(_layers(host), None) is None:
        host.register_forward_pre_hook(_stand_in)
        host.register_forward_hook(_step_back, always_call=True)
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
    for hooks in (host._forward_pre_hooks, host._forward_hooks):
        for handle, hook in list(hooks.items()):
            if hook in (_stand_in, _step_back):
                del hooks[handle]
                host._forward_hooks_always_called.pop(handle, None)


def _layers(host: nn.Module) -> Iterator[tuple[str, FPELayer]]:
    """The layers that live in a host, with the names of their matrices there."""
    for name, module in host._modules.items():
        if isinstance(module, FPELayer) and name.startswith(PREFIX):
            yield name.removeprefix(PREFIX), module


# Functions, not methods: a deep copy or a pickle of the host takes them along as they are.


def _stand_in(host: nn.Module, args: Any) -> None:
    """Builds the dense tensors. An instance's own attributes hide its parameters."""
    for weight, layer in _layers(host):
        dense = layer.dense_weight()
        host.__dict__[weight] = dense.mT if layer.stock == "transposed_experts" else dense
        bias = layer.dense_bias()
        if bias is not None:
            host.__dict__[layer.host_names["bias"]] = bias


def _step_back(host: nn.Module, args: Any, output: Any) -> None:
    for _, layer in _layers(host):
        for name in layer.host_names.values():
            host.__dict__.pop(name, None)
