"""What is compared: how each arm is made of the dense parent, before training or in its midst."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import modules
from ..closing import open_blocks
from ..config import FPEConfig
from ..conversion import apply_plans, plan_blocks, widen
from ..dense import to_dense
from ..modules import fpe_layers, take_weights
from ..splits import derive_seed
from .building import build_parent
from .controls import MaskedLinear, apply_overlap, plan_overlap
from .narrowing import apply_narrow, plan_narrow
from .preprocessing import Prepared
from .schema import Recipe

Change = Callable[[Any], Any]
"""Changes a model of the parent's structure in place and returns it."""


@dataclass(frozen=True)
class Expansion:
    """What makes an arm of a dense model.

    Attributes:
        weights: The change of a model.
        moments: The change of a model that holds optimizer state in the place of its weights: it
            divides it as the weights are divided, but draws and fits nothing.
    """

    weights: Change
    moments: Change

    def __call__(self, model: Any) -> Any:
        """Makes the arm of a model, in place."""
        return self.weights(model)


_WHERE = ("targets", "exclude", "seed")
_KEPT = ("alpha", "budget")


def fpe_config(recipe: Recipe, seed: int, arm: str = "fpe") -> FPEConfig:
    """The recipe's `FPEConfig` with a seed of its own for each repetition.

    For `fpe-random` it keeps which blocks are widened, how far and within what budget; all the
    rest is the paper's, which masks weight by weight.
    """
    config = recipe.widen.fpe()
    config = config.with_overrides(seed=derive_seed(config.seed, str(seed)))
    return _keeping(config, _KEPT, layout="element") if arm == "fpe-random" else config


def _keeping(config: FPEConfig, kept: tuple[str, ...], **fields: Any) -> FPEConfig:
    """A configuration with the fields of `fields`, and of `config` those in `kept` alone."""
    plain = config.to_dict()
    overrides = {
        pattern: {name: value for name, value in own.items() if name in kept}
        for pattern, own in plain["overrides"].items()
    }
    own = {name: plain[name] for name in (*_WHERE, *kept)}
    return FPEConfig.from_dict({**own, **fields, "overrides": overrides})


def plan_expansion(
    arm: str, model: Any, config: FPEConfig, batches: Sequence[Mapping[str, Any]]
) -> Expansion:
    """Plans what makes the arm of a dense model, from the model's weights as they are now.

    Args:
        arm: `fpe`, `fpe-random`, `overlap` or `narrow-dense`.
        model: The dense model; it stays as it is.
        config: What to do.
        batches: Inputs of forward passes: the first for `find_mlps`, all for what is fitted.

    Returns:
        The change, for this model or for any other of its structure.
    """
    if arm == "narrow-dense":
        narrow = plan_narrow(model, config, batches)
        return Expansion(
            _changing(lambda other: apply_narrow(other, narrow, fitted=True)),
            _changing(lambda other: apply_narrow(other, narrow, fitted=False)),
        )
    if arm == "overlap" and not config.starts_open:
        masks = plan_overlap(model, config, batches[0])
        change = _changing(lambda other: apply_overlap(other, masks))
        return Expansion(change, change)
    plans = plan_blocks(model, config, batches[0])
    change = _changing(lambda other: apply_plans(other, list(plans), config))

    def divide(holder: Any) -> Any:
        downs = {block.name: take_weights(holder, block).down.clone() for block, _ in plans}
        return _copy_down(change(holder), downs)

    return Expansion(change, divide)


@torch.no_grad()
def _copy_down(model: Any, downs: Mapping[str, Tensor]) -> Any:
    """Gives the children of open blocks what belongs to their parents' outgoing weights: those that
    hold shares of the weights have the gradients of the whole."""
    for block in open_blocks(model):
        spec, layer = block.spec, block.down
        whole = downs[spec.name].view(-1, spec.experts, 1, spec.parents)
        layer.by_child(layer.weight).copy_(whole)
        layer.kill()
    return model


def _changing(act: Callable[[Any], None]) -> Change:
    def change(model: Any) -> Any:
        act(model)
        return model

    return change


def wide_dense(recipe: Recipe, prepared: Prepared, seed: int, inputs: Mapping[str, Any]) -> Any:
    """The ceiling: a dense model as wide as the widened one, with all the weights that takes.

    Built from a config, it starts from random weights of its own. Of a pretrained model it is the
    exact start with its zeros free to grow.
    """
    from transformers import set_seed

    parent = build_parent(recipe, prepared, seed)
    exact = {"coupling": 1.0, "fan_out": "partition"}
    config = _keeping(fpe_config(recipe, seed), ("alpha",), **exact)
    dense = to_dense(widen(copy.deepcopy(parent), config, example_inputs=inputs))
    if recipe.model.name_or_path is not None:
        return dense
    set_seed(seed)
    return type(parent)(dense.config)


def nonzeros(model: Any) -> int:
    """Trainable and frozen numbers of a model that are not zero by structure."""
    masked = (m for m in model.modules() if isinstance(m, MaskedLinear))
    return modules.nonzeros(model) - sum(int((~module.mask).sum()) for module in masked)


def is_widened(model: Any) -> bool:
    """Whether a model has widened layers."""
    return next(fpe_layers(model), None) is not None
