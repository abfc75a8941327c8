"""Modules that compute faster: a subclass of a module's class, in the place of its class."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from torch import nn

Forward = Callable[..., Any]
"""`forward(module, stock, *args, **kwargs)`; `stock` is the forward of the module's own class."""


def give(module: nn.Module, forward: Forward) -> None:
    """Has a module run `forward`.

    It stays an instance of its class, with the same name and signature, can be copied and pickled,
    and keeps its attributes.

    Args:
        module: The module.
        forward: A function of a module, so that copies and pickles find it.
    """
    module.__class__ = _subclass(type(module), forward)  # type: ignore[arg-type]


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before `give`."""
    kind = type(module)
    stock: type[nn.Module] = getattr(kind, "_fpe_stock", kind)
    return stock


def is_given(module: nn.Module) -> bool:
    """Whether a module has been given a forward."""
    return own_class(module) is not type(module)


def take_back(module: nn.Module, *forwards: Forward) -> None:
    """Undoes `give`, if what was given is one of `forwards`."""
    if getattr(type(module), "_fpe_forward", None) in forwards:
        module.__class__ = own_class(module)


@cache
def _subclass(stock: type[nn.Module], forward: Forward) -> type[nn.Module]:
    @wraps(stock.forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, stock.forward, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (stock, forward), self.__dict__.copy()

    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {
        **names,
        "forward": run,
        "__reduce_ex__": reduce,
        "_fpe_stock": stock,
        "_fpe_forward": forward,
    }
    return type(stock.__name__, (stock,), body)


def _rebuild(stock: type[nn.Module], forward: Forward) -> nn.Module:
    kind = _subclass(stock, forward)  # type: ignore[arg-type]
    return kind.__new__(kind)
