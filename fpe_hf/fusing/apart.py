"""Larger modules in which up projection, activation and down projection lie side by side.

While such a module of transformers runs, its up projection computes the whole block, and the
activation and the down projection hand the result on. Whether that is allowed is found out once, by
a run without gradients that is watched and whose outputs are thrown away: if anything but the
activation and the down projection reads the hidden activations, or anything changes them on their
way, the module goes on as its own program says. Dropout can make the difference, so what is found
holds for one mode and one set of dropout rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import FusingError
from ..kernels.ordinary import is_ordinary
from ..layers.subclass import Forward, give, is_given
from .activations import is_activation
from .recognize import Program, Step, Value, is_of_transformers
from .whole import Parts, compute, is_allowed, is_watched, submodule


@dataclass
class Apart:
    """What `forward` goes by.

    Attributes:
        parts: The parts of the block.
        candidates: Names of the activations that may lie between.
        stock: The forward that was looked at.
        methods: Names of the module's methods.
        activation: Mode and dropout rates -> the name of the activation between, `None` if the
            block must not be one operation.
    """

    parts: Parts
    candidates: tuple[str, ...]
    stock: Callable[..., Any]
    methods: frozenset[str]
    activation: dict[tuple[Any, ...], str | None] = field(default_factory=dict)

    def is_watched(self, module: nn.Module, activation: str | None = None) -> bool:
        """Whether anybody would notice that the parts, or what is between, are not called."""
        names = [*self.parts.ups, self.parts.down, *([activation] if activation else [])]
        inner = (name[:at] for name in names for at, sign in enumerate(name) if sign == ".")
        return is_watched(submodule(module, name) for name in dict.fromkeys((*names, *inner)))


@dataclass
class _Run:
    """A run of a module.

    Attributes:
        module: The module.
        own: What it goes by.
        result: What its up projection computed, until its down projection has handed it on.
        watcher: What watches the run, if its outputs are thrown away.
        state: The mode and the dropout rates.
    """

    module: nn.Module
    own: Apart
    state: tuple[Any, ...]
    result: Tensor | None = None
    watcher: _Watcher | None = None

    def changed(self) -> FusingError:
        """The error of a module that does not do what it did in its first run."""
        self.own.activation[self.state] = None
        return FusingError(
            f"{type(self.module).__name__} changed since its first run: {self.own.parts.down!r} no "
            "longer reads what the activation made. Run it again: from now on it computes every "
            "projection for itself, as within fpe_hf.fusing.unfused()."
        )

    def name_of(self, activation: nn.Module) -> str | None:
        """The name of a module that may be the activation."""
        names = (n for n in self.own.candidates if submodule(self.module, n) is activation)
        return next(names, None)


_current: ContextVar[_Run | None] = ContextVar("fpe_hf_run", default=None)


@contextmanager
def _running(run: _Run) -> Iterator[None]:
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def install(module: nn.Module, parts: Parts) -> None:
    """Has a module of transformers compute a block as one operation, if it turns out that it may.

    Args:
        module: It holds the block.
        parts: The block's parts, with one up projection.
    """
    kind = type(module)
    if not is_of_transformers(module):
        return
    candidates = tuple(name for name, own in module.named_modules() if is_activation(own))
    methods = frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))
    own = Apart(parts, candidates, kind.forward, methods)
    module.__dict__["_fpe_apart"] = own
    roles: list[tuple[str, Forward]] = [("", _forward), (parts.ups[0], _up), (parts.down, _down)]
    for name, forward in (*roles, *((name, _activation) for name in candidates)):
        part = module.get_submodule(name)
        if not is_given(part):
            give(part, forward)


def _forward(module: Any, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    own: Apart | None = module.__dict__.get("_fpe_apart")
    x = args[0] if args else None
    if (
        own is None
        or not isinstance(x, Tensor)
        or not is_ordinary(x)
        or not is_allowed(x)
        or stock is not own.stock
        or not own.methods.isdisjoint(module.__dict__)
    ):
        return stock(module, *args, **kwargs)
    state = _state(module)
    if state not in own.activation and not _find_out(_Run(module, own, state), args, kwargs):
        return stock(module, *args, **kwargs)
    run = _Run(module, own, state)
    if own.activation[state] is None:
        return stock(module, *args, **kwargs)
    with _running(run):
        result = stock(module, *args, **kwargs)
    if run.result is not None:
        raise run.changed()
    return result


def _state(module: nn.Module) -> tuple[Any, ...]:
    """The mode and the dropout rates of a module."""
    rates = [own for name, own in module.__dict__.items() if "drop" in name]
    drops = [
        (own.p, own.training) for own in module._modules.values() if isinstance(own, nn.Dropout)
    ]
    return (module.training, *rates, *drops)


def _find_out(run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Runs a module for nothing but to see what becomes of hidden activations.

    Returns:
        Whether it could: somebody would notice, or the run would leave traces, as in a cache.
    """
    plain = (Tensor, bool, int, float, str, type(None))
    if not all(isinstance(leaf, plain) for leaf in tree_leaves((args, kwargs))):
        return False
    inner = [own for own in run.module.modules() if own is not run.module]
    if is_watched(own for own in inner) or torch.is_inference_mode_enabled():
        return False
    run.watcher = _Watcher()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _running(run), run.watcher:
        result = run.own.stock(run.module, *args, **kwargs)
    run.own.activation[run.state] = run.watcher.verdict(result)
    return True


def _up(layer: Any, stock: Callable[..., Any], x: Tensor) -> Any:
    run = _run_of(layer, lambda own: own.parts.ups)
    if run is None:
        return stock(layer, x)
    if run.watcher is not None:
        return run.watcher.up(stock(layer, x))
    run.result = _compute(run, run.own.activation[run.state], x)
    return stock(layer, x) if run.result is None else run.result


def _activation(module: Any, stock: Callable[..., Any], x: Tensor) -> Any:
    run = _run_of(module, lambda own: own.candidates)
    if run is None:
        return stock(module, x)
    if run.watcher is not None:
        with run.watcher.allowed():
            return run.watcher.activation(run.name_of(module), x, stock(module, x))
    return x if x is run.result else stock(module, x)


def _down(layer: Any, stock: Callable[..., Any], x: Tensor) -> Any:
    run = _run_of(layer, lambda own: (own.parts.down,))
    if run is None:
        return stock(layer, x)
    if run.watcher is not None:
        run.watcher.down(x)
        with run.watcher.allowed():
            return stock(layer, x)
    if run.result is None:
        return stock(layer, x)
    if x is not run.result:
        raise run.changed()
    run.result = None
    return x


FORWARDS = (_forward, _up, _activation, _down)
"""What modules are given."""


def _run_of(part: nn.Module, names: Callable[[Apart], Iterable[str]]) -> _Run | None:
    """The run in which a module plays one of the parts of these names."""
    if torch.compiler.is_compiling():
        return None
    run = _current.get()
    played = run is not None and any(submodule(run.module, n) is part for n in names(run.own))
    return run if played else None


def _compute(run: _Run, activation: str | None, x: Tensor) -> Tensor | None:
    """The block's outputs by one operation, or `None` if it must not be one here."""
    layers = run.own.parts.layers(run.module)
    own = None if activation is None else submodule(run.module, activation)
    if layers is None or activation is None or own is None:
        return None
    if not (is_activation(own) and is_given(own)):  # another has taken its place
        return None
    if run.own.is_watched(run.module, activation):
        return None
    program = Program((Step(activation, (Value(0),)),))
    return compute(*layers, program.between(run.module), x)


class _Watcher(TorchDispatchMode):
    """Watches what becomes of hidden activations.

    Attributes:
        name: The activation that they go through.
        hidden: All of them, before and after the activation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name: str | None = None
        self.hidden: list[Tensor] = []
        self._made: Tensor | None = None
        self._expected: Tensor | None = None
        self._fine, self._calls, self._inside = True, 0, False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within it, hidden activations may be read."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def up(self, made: Tensor) -> Tensor:
        """Notes what the up projection made."""
        self._fine &= self._made is None and self._expected is None
        self._made = made
        self.hidden.append(made)
        return made

    def activation(self, name: str | None, x: Tensor, made: Tensor) -> Tensor:
        """Notes what an activation made."""
        if self._is_hidden(x):
            self._fine &= x is self._made and name is not None and self.name in (None, name)
            self.name, self._made, self._expected = name, None, made
            self.hidden.append(made)
        return made

    def down(self, x: Tensor) -> None:
        """Notes what the down projection reads."""
        self._fine &= x is self._expected
        self._expected = None
        self._calls += 1

    def verdict(self, result: Any) -> str | None:
        """The activation through which all hidden activations went, if nothing else read them."""
        handed_on = any(self._is_hidden(leaf) for leaf in tree_leaves(result))
        return self.name if self._fine and self._calls and not handed_on else None

    def _is_hidden(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and any(
            leaf.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
            for own in self.hidden
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self._inside and any(map(self._is_hidden, tree_leaves((args, kwargs)))):
            self._fine = False
        return func(*args, **(kwargs or {}))
