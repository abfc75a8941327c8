"""What is compared: how each arm is made of the dense parent, before training or in its midst."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ..config import FPEConfig
from ..conversion import apply_plans, plan_blocks, widen
from ..dense import to_dense
from ..modules import fpe_layers
from ..splits import derive_seed
from .building import build_parent
from .controls import MaskedLinear, apply_overlap, plan_overlap
from .preprocessing import Prepared
from .schema import Recipe

Expansion = Callable[[Any], Any]
"""Changes a model of the parent's structure in place and returns it."""

_EXACT = {
    "layout": "element",
    "tile_size": None,
    "coupling": 1.0,
    "learn_coupling": False,
    "fan_out": "partition",
    "bias": "shared",
}


def fpe_config(recipe: Recipe, seed: int) -> FPEConfig:
    """The recipe's `FPEConfig` with a seed of its own for each repetition."""
    config = recipe.widen.fpe()
    return config.with_overrides(seed=derive_seed(config.seed, str(seed)))


def plan_expansion(arm: str, model: Any, config: FPEConfig, inputs: Mapping[str, Any]) -> Expansion:
    """Plans what makes the arm of a dense model, from the model's weights as they are now.

    Args:
        arm: `fpe` or `overlap`.
        model: The dense model; it stays as it is.
        config: What to do.
        inputs: For `find_mlps`.

    Returns:
        The change, for this model or for any other of its structure.
    """
    if arm == "fpe":
        plans = plan_blocks(model, config, inputs)

        def expand(other: Any) -> Any:
            apply_plans(other, list(plans), config)
            return other

        return expand
    masks = plan_overlap(model, config, inputs)

    def mask(other: Any) -> Any:
        apply_overlap(other, masks)
        return other

    return mask


def wide_dense(recipe: Recipe, prepared: Prepared, seed: int, inputs: Mapping[str, Any]) -> Any:
    """The ceiling: a dense model as wide as the widened one, with all the weights that takes.

    Built from a config, it starts from random weights of its own. Of a pretrained model it is the
    exact start with its zeros free to grow.
    """
    from transformers import set_seed

    parent = build_parent(recipe, prepared, seed)
    plain = fpe_config(recipe, seed).to_dict()
    overrides = {
        pattern: {"alpha": fields["alpha"]}
        for pattern, fields in plain["overrides"].items()
        if "alpha" in fields
    }
    config = FPEConfig.from_dict({**plain, **_EXACT, "overrides": overrides})
    dense = to_dense(widen(copy.deepcopy(parent), config, example_inputs=inputs))
    if recipe.model.name_or_path is not None:
        return dense
    set_seed(seed)
    return type(parent)(dense.config)


def nonzeros(model: Any) -> int:
    """Trainable and frozen numbers of a model that are not zero by structure."""
    masked = [m for m in model.modules() if isinstance(m, MaskedLinear)]
    total: int = sum(parameter.numel() for parameter in model.parameters())
    return total - sum(int((~module.mask).sum()) for module in masked)


def is_widened(model: Any) -> bool:
    """Whether a model has widened layers."""
    return next(fpe_layers(model), None) is not None
