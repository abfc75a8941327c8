"""Optimizers that go on with the parameters of closed layers in the place of open ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ..errors import ConfigError
from .pack import successor

_REFUSED = {
    "Muon": "trains matrices only: let AdamW, say, train the widened projections",
    "ZeroRedundancyOptimizer": "divides its state among processes: take an ordinary optimizer",
    "DeepSpeed": "holds parameters in parts: train with DistributedDataParallel or on one device",
}


def check_optimizer(optimizer: Optimizer | None) -> None:
    """Raises `ConfigError` if an optimizer cannot train what a budget leaves."""
    for kind in (*type(optimizer).__mro__, *type(_bare(optimizer)).__mro__):
        for name, reason in _REFUSED.items():
            if kind.__name__.startswith(name):
                raise ConfigError(
                    f"the layers of a closed budget are packed vectors, and {name} {reason}."
                )


def check_trains(optimizer: Optimizer | None, weights: Mapping[str, Tensor]) -> None:
    """Raises `ConfigError` if an optimizer lacks weights that are to be trained.

    Args:
        optimizer: The optimizer, if there is one.
        weights: Those of the open layers, by name.
    """
    if optimizer is None:
        return
    held = {id(own) for group in optimizer.param_groups for own in group["params"]}
    lacking = [name for name, own in weights.items() if own.requires_grad and id(own) not in held]
    if lacking:
        raise ConfigError(
            f"the optimizer does not hold {lacking[0]!r}, and {len(lacking)} of {len(weights)} "
            "weights of open layers in all: make it from the parameters of the widened model, "
            "after fpe_hf.widen. (Weights that are not to be trained: requires_grad_(False).)"
        )


def follow(
    optimizer: Optimizer | None,
    old: nn.Parameter,
    new: nn.Parameter,
    take: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Has an optimizer train a parameter in the place of another.

    Args:
        optimizer: The optimizer, if there is one.
        old: The parameter of an open layer.
        new: That of the closed one.
        take: Takes what belongs to `new` from a tensor like `old`; without it, only moments that
            fit `new` already are kept.
    """
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        # In place: LBFGS holds the list.
        group["params"][:] = [new if own is old else own for own in group["params"]]
    bare = _bare(optimizer)
    if isinstance(bare, LBFGS):  # one state for all parameters, of the first
        bare._numel_cache = None
        if take is not None:
            bare.state.clear()
    state = optimizer.state.pop(old, None)
    if state:
        whole = isinstance(bare, LBFGS)
        moved = state if whole else {k: _moved(v, old, new, take) for k, v in state.items()}
        if not any(value is None and state[key] is not None for key, value in moved.items()):
            optimizer.state[new] = moved


def adopt(optimizer: Optimizer | None) -> None:
    """Has an optimizer train what took the place of its parameters when a state was loaded."""
    groups = [] if optimizer is None else optimizer.param_groups
    for old in [own for group in groups for own in group["params"]]:
        new = successor(old)
        if new is not None:
            follow(optimizer, old, new)


def forget(optimizer: Optimizer | None, weight: nn.Parameter, come: Tensor) -> None:
    """Has weights that start anew start without moments."""
    state = {} if optimizer is None else optimizer.state.get(weight, {})
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.masked_fill_(come, 0.0)


def is_accumulating(optimizer: Any) -> bool:
    """Whether an optimizer that accelerate has prepared leaves its steps out, as it accumulates."""
    state = getattr(optimizer, "gradient_state", None)
    return not getattr(state, "sync_gradients", True)


def _bare(optimizer: Any) -> Any:
    """The optimizer in one that wraps it, as accelerate does."""
    return getattr(optimizer, "optimizer", optimizer)


def _moved(value: Any, old: Tensor, new: Tensor, take: Callable[[Tensor], Tensor] | None) -> Any:
    """A part of an optimizer's state, for a parameter that takes the place of another; `None` if
    it cannot be had."""
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape == new.shape:
        return value
    return take(value) if take is not None and value.shape == old.shape else None
