"""Modules that are an MLP and nothing else: they compute it as one operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..kernels import dispatch
from ..kernels.fused import MLP, fused
from ..layers import BlockDown, BlockUp
from ..layers.parting import note_training
from ..layers.subclass import own_class
from ..linear import CHANNEL_AXES
from .activations import is_activation
from .recognize import Program, is_idle

_allowed: ContextVar[bool] = ContextVar("fpe_hf_fusing_allowed", default=True)


@contextmanager
def unfused() -> Iterator[None]:
    """Within it, every projection computes for itself, as its module's own program says."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def is_allowed(x: Tensor) -> bool:
    """Whether a module may compute as one operation what it does with `x`: see `unfused`."""
    return not torch.compiler.is_compiling() and dispatch.may_pay(x) and _allowed.get()


@dataclass(frozen=True)
class Parts:
    """The parts of a block, by their names in the module that holds them.

    Attributes:
        ups: The up projections, gate first.
        down: The down projection.
    """

    ups: tuple[str, ...]
    down: str

    def layers(self, module: nn.Module) -> tuple[list[BlockUp], BlockDown] | None:
        """The projections, or `None` if others have taken their places."""
        *ups, down = (submodule(module, name) for name in (*self.ups, self.down))
        found = [up for up in ups if isinstance(up, BlockUp) and own_class(up) is BlockUp]
        if len(found) != len(ups) or not isinstance(down, BlockDown):
            return None
        return (found, down) if own_class(down) is BlockDown else None


def submodule(module: nn.Module, name: str) -> nn.Module | None:
    """A submodule by its dotted name, or `None`: `get_submodule` without checks, as it is called
    in every forward pass."""
    found: nn.Module | None = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found


def is_watched(modules: Iterable[nn.Module | None]) -> bool:
    """Whether anybody would notice that a module is not called."""
    return any(
        module is None
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # as accelerate's hooks do it
        for module in modules
    ) or bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def compute(
    ups: list[BlockUp], down: BlockDown, between: Callable[..., Tensor], x: Tensor
) -> Tensor | None:
    """The block's outputs by one operation, or `None` where that cannot be or does not pay.

    Args:
        ups: The up projections, gate first.
        down: The down projection.
        between: What lies between.
        x: `[..., in_features]`.
    """
    layers = (*ups, down)
    if any(layer.spec != down.spec or CHANNEL_AXES[layer.stock] != -1 for layer in layers):
        return None
    operands: list[Tensor | None] = []
    for up in ups:
        operands += [up.inputs, up.weight, up.bias, up.coupling]
    operands += [down.outputs, down.weight, down.bias]
    if not dispatch.may_fuse(x, down.spec, operands):
        return None
    note_training(down)
    recompute = any(up.recompute for up in ups)
    return fused(MLP(down.spec, between, recompute), x, *operands)


@dataclass(frozen=True)
class Whole:
    """What `forward` goes by.

    Attributes:
        parts: The parts of the block.
        program: What the module does.
        stock: The forward in which that was read.
        children: Names of the module's children then.
    """

    parts: Parts
    program: Program
    stock: Callable[..., Any]
    children: tuple[str, ...]


def forward(module: Any, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that is an MLP and nothing else."""
    result = None
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and is_allowed(args[0]):
        result = _fused(module, stock, args[0])
    return stock(module, *args, **kwargs) if result is None else result


def _fused(module: nn.Module, stock: Callable[..., Any], x: Tensor) -> Tensor | None:
    own: Whole | None = module.__dict__.get("_fpe_whole")
    if own is None or stock is not own.stock or tuple(module._modules) != own.children:
        return None
    layers = own.parts.layers(module)
    if layers is None:
        return None
    program = own.program
    activations = [submodule(module, name) for name in program.submodules]
    hidden_drops, output_drops = (
        [submodule(module, name) for name in names]
        for names in (program.hidden_drops, program.output_drops)
    )
    if (
        is_watched((*layers[0], layers[1], *activations, *hidden_drops, *_inner(module, own.parts)))
        or not all(own is not None and is_activation(own) for own in activations)
        or not all(own is not None and is_idle(own) for own in hidden_drops)
    ):
        return None
    result = compute(*layers, program.between(module), x)
    if result is not None:
        for drop in output_drops:
            result = result if drop is None else drop(result)
    return result


def _inner(module: nn.Module, parts: Parts) -> list[nn.Module | None]:
    """The modules between a module and its projections."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in (*parts.ups, parts.down))
    return [submodule(module, name) for name in names if name]
