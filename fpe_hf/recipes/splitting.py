"""Splitting in mid-training: a checkpoint of the dense parent becomes one of an arm.

Schedule, random state and position in the data are the parent's, so the Trainer goes on with the
next batch. The optimizer's moments are divided among the children as the weights are: they are put
into a copy of the parent, and that copy is expanded by the same plan.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..files import whole_folder
from ..modules import fpe_layers
from .arms import Expansion
from .checkpoints import OPTIMIZER, STATE

SCHEDULER = "scheduler.pt"


def split_checkpoint(
    checkpoint: Path, dense: Any, arm: Any, expansion: Expansion, make_trainer: Any, out: Path
) -> None:
    """Writes the checkpoint from which an arm goes on.

    Args:
        checkpoint: Of the dense parent, as the Trainer wrote it.
        dense: The dense model with that checkpoint's weights.
        arm: The arm's model, made of `dense` by `expansion`.
        expansion: What made it.
        make_trainer: Model -> Trainer, for the optimizer with its groups of parameters.
        out: Folder to write; it takes its place when it is whole.

    Raises:
        RecipeError: The checkpoint holds no optimizer that one process can read.
    """
    if not (checkpoint / OPTIMIZER).is_file():
        raise RecipeError(
            f"widen.at: {checkpoint} has no {OPTIMIZER} (FSDP and DeepSpeed keep the optimizer "
            "in parts): with them, widen before training (leave widen.at out)."
        )
    before = make_trainer(dense).create_optimizer()
    saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    before.load_state_dict(saved)
    after = make_trainer(arm).create_optimizer()
    carry_state(before, dense, after, arm, expansion)
    random_states = (path.name for path in checkpoint.glob("rng_state*.pth"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out, replace=True) as folder:
        torch.save(after.state_dict(), folder / OPTIMIZER)
        arm.save_pretrained(folder)
        for name in (SCHEDULER, STATE, *random_states):
            shutil.copyfile(checkpoint / name, folder / name)


def carry_state(
    before: torch.optim.Optimizer,
    dense: nn.Module,
    after: torch.optim.Optimizer,
    arm: nn.Module,
    expansion: Expansion,
) -> None:
    """Gives an arm's optimizer the state of its parent's.

    State of the shape of a parameter follows the weights; a number per parameter, such as the step
    count, is handed on. State of any other shape belongs to no weight: parameters with such state
    start afresh.

    Args:
        before: The parent's optimizer, with its state.
        dense: The parent.
        after: The arm's optimizer, without state. It is filled, and takes over the settings.
        arm: The arm's model.
        expansion: What makes the arm of the parent.
    """
    for old, new in zip(before.param_groups, after.param_groups, strict=True):
        new.update({key: value for key, value in old.items() if key != "params"})
    states = {
        name: before.state[parameter]
        for name, parameter in dense.named_parameters()
        if before.state.get(parameter)
    }
    shaped = {
        key
        for name, parameter in dense.named_parameters()
        for key, value in states.get(name, {}).items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
    }
    carried = {key: _moments(key, states, dense, expansion) for key in sorted(shaped)}
    steps = _numbers(states)
    for name, parameter in arm.named_parameters():
        if not parameter.requires_grad or not steps:
            continue
        state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in steps}
        for key, moments in carried.items():
            value = moments.get(name)
            if value is not None and value.shape == parameter.shape and not value.isnan().any():
                state[key] = value.to(parameter.device)
        if len(state) == len(steps) + len(carried):
            after.state[parameter] = state


def _moments(
    key: str, states: dict[str, dict[str, Any]], dense: nn.Module, expansion: Expansion
) -> dict[str, Tensor]:
    """One kind of state, expanded as the weights are: name in the arm -> tensor, NaN where the
    parent has no such state."""
    holder = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            value = states.get(name, {}).get(key)
            if value is None or value.shape != parameter.shape:
                parameter.fill_(torch.nan)  # unknown
            else:
                parameter.copy_(value)
    expanded = expansion.moments(holder)
    with torch.no_grad():
        for _, layer in fpe_layers(expanded):
            if getattr(layer, "coupling", None) is not None:
                layer.coupling.zero_()  # a new parameter: nothing is known of it
    return {name: parameter.detach() for name, parameter in expanded.named_parameters()}


def _numbers(states: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """State that is one number per parameter, the same for all."""
    first: dict[str, Any] = next(iter(states.values()), {})
    return [
        (key, value)
        for key, value in first.items()
        if not isinstance(value, Tensor) or value.dim() == 0
    ]
