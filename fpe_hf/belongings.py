"""What others put on a projection, which it keeps when it is replaced: flags, hooks and tags."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
"""Attributes of a module that hold the hooks on its calls."""

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_ACCELERATE = ("_hf_hook", "_old_forward")
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OURS = ("torch", "transformers", "transformers_modules", "fpe_hf")


def refusal(module: nn.Module, name: str) -> str | None:
    """Why a module cannot be replaced without losing what others put on it, if it cannot.

    Args:
        module: A linear projection.
        name: Its dotted name.
    """
    if any(getattr(module, hooks, None) for hooks in _STATE_HOOKS):
        return f"{name} has hooks on its state dict; remove them first"
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return f"the forward of {name} was exchanged; restore that of its class first"
    hooked = (own for own, tensor in module._parameters.items() if has_gradient_hooks(tensor))
    own = next(hooked, None)
    return None if own is None else f"{name}.{own} has hooks on its gradient; remove them first"


def has_gradient_hooks(parameter: Tensor | None) -> bool:
    """Whether somebody watches the gradient of a parameter, which will have another shape."""
    return any(getattr(parameter, hooks, None) for hooks in _GRADIENT_HOOKS)


def hand_over(old: nn.Module, new: nn.Module, bare: nn.Module) -> None:
    """Gives what others put on a module to the one that takes its place.

    Handles of hooks go on working.

    Args:
        old: The module that is replaced.
        new: The module that replaces it.
        bare: One like `old` that nobody has touched.
    """
    new.train(old.training)
    own = vars(old)
    known = {*vars(bare), *vars(new), *_ACCELERATE}
    tags = [name for name in own if name not in known and not hasattr(type(old), name)]
    vars(new).update({name: own[name] for name in (*HOOKS, *tags)})
    for name, parameter in new._parameters.items():
        like = old._parameters.get(name, old._parameters.get("weight"))
        if parameter is not None and like is not None:
            mark_like(like, parameter)


def mark_like(old: Tensor, new: Tensor) -> None:
    """Has a parameter learn, or not, like the one that it replaces, and carry its tags."""
    new.requires_grad_(old.requires_grad)
    vars(new).update(vars(old))


def is_foreign(hook: Any) -> bool:
    """Whether a hook belongs neither to a model's own code nor to this package."""
    while isinstance(hook, partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] not in _OURS
