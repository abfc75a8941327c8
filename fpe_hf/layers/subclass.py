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

    It stays an instance of its class, with the same name and signature, is copied and pickled as
    that class says, and keeps its attributes.

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


class _Named(type):
    """Of the classes that `give` makes: who finds one by the name of a class, as FSDP's wrapping
    does, finds all modules of that class by it."""

    def __instancecheck__(cls, instance: Any) -> bool:
        stock = vars(cls).get("_fpe_stock")
        return super().__instancecheck__(instance) if stock is None else isinstance(instance, stock)


@cache
def _subclass(stock: type[nn.Module], forward: Forward) -> type[nn.Module]:
    @wraps(stock.forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, stock.forward, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made: Any = stock.__reduce_ex__(self, protocol)
        maker, args, *rest = made
        maker, *args = (stock if item is kind else item for item in (maker, *args))
        return _rebuild, (forward, maker, *args), *rest

    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {
        **names,
        "forward": run,
        "__reduce_ex__": reduce,
        "_fpe_stock": stock,
        "_fpe_forward": forward,
    }
    meta = type("_Named", (_Named, type(stock)), {}) if type(stock) is not type else _Named
    kind: type[nn.Module] = meta(stock.__name__, (stock,), body)
    return kind


def _rebuild(forward: Forward, maker: Callable[..., nn.Module], *args: Any) -> nn.Module:
    made = maker(*args)
    give(made, forward)
    return made
