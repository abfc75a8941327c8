"""Saving: the plan goes where the loader of what is saved looks for it.

`widen` writes the plan into the config of the model it is given. What is saved may be another: a
model that this one is a part of, or a part of it. transformers offers no hook, so its
`save_pretrained` is wrapped, once the first model has been widened or loaded.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import nn

from ..auditing import openness
from ..config import FPEConfig
from ..errors import BudgetError, CheckpointError
from ..modules import blocks_of, has_config, projections
from ..planning import BlockSpec

if TYPE_CHECKING:
    from .plan import FPEQuantizationConfig


def record_plan(model: Any, config: FPEConfig, specs: Sequence[BlockSpec]) -> None:
    """Writes the plan where `save_pretrained` will find it, whatever is saved.

    That may also be a model of transformers that this one is a part of, or a part of it.

    Args:
        model: The model, its blocks widened.
        config: What was asked for.
        specs: The blocks.
    """
    if has_config(model):
        from .plan import FPEQuantizationConfig

        own = _own_config(model)
        parent = _leave_parent(model)
        own.quantization_config = FPEQuantizationConfig.from_specs(config, specs, parent)
        keep_names(model)
    wrap_saving()


def _own_config(model: Any) -> Any:
    """The model's config, which other models may have been built from, as a copy of its own."""
    shared, own = model.config, copy.copy(model.config)
    for module in model.modules():
        attributes = vars(module)
        attributes.update({name: own for name, value in attributes.items() if value is shared})
    return own


def _leave_parent(model: Any) -> str | None:
    """Has a model no longer go by the name of its dense parent: like a new one, it has none.

    What loads a model again by its name, such as an adapter or a trainer that wants a reference
    model, would get the parent, and nobody would notice.

    Returns:
        The parent's id on the Hub, if it has one.
    """
    from .plan import is_hub_id

    name = model.config._name_or_path
    if not name:
        return None
    known = is_hub_id(name) and not os.path.isdir(name)
    model.config._name_or_path = ""
    for module in model.modules():
        if vars(module).get("name_or_path") == name:
            module.name_or_path = ""
    return name if known else None


def keep_names(model: Any) -> None:
    """Has a model saved under the names it has in memory.

    transformers undoes, when saving, what it did to a checkpoint's tensors when loading: splits and
    merges that make no sense for packed weights. Its loader reads names as in memory, too.
    """
    model._weight_conversions = []


def wrap_saving() -> None:
    """Has models of transformers, if it is loaded, save the plan of what is widened in them, and
    not be pushed to the Hub while a budget is open."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or hasattr(library.PreTrainedModel.save_pretrained, "saves_plans"):
        return
    kind = library.PreTrainedModel
    save, push = kind.save_pretrained, kind.push_to_hub

    @wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("push_to_hub"):
            _check_closed(self)
        with _planned(self):
            return save(self, *args, **kwargs)

    @wraps(push)
    def push_to_hub(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_closed(self)
        return push(self, *args, **kwargs)

    save_pretrained.saves_plans = True  # type: ignore[attr-defined]
    kind.save_pretrained, kind.push_to_hub = save_pretrained, push_to_hub


def _check_closed(model: nn.Module) -> None:
    """Raises `BudgetError` if a model that goes to others holds more than it may."""
    found = openness(model)
    if found is not None:
        raise BudgetError(found)


@contextmanager
def _planned(model: Any) -> Iterator[None]:
    """Within it, the model's config holds the plan of all that is widened in the model."""
    # Of a model with adapters, transformers saves these alone, and no config.
    plan = None if getattr(model, "_hf_peft_config_loaded", False) else plan_of(model)
    config, own = vars(model.config), vars(model)
    if plan is None or plan is config.get("quantization_config"):
        yield
        return
    changed = ((config, "quantization_config"), (own, "_weight_conversions"))
    before = [(attributes, name, attributes.get(name, changed)) for attributes, name in changed]
    model.config.quantization_config = plan
    keep_names(model)
    try:
        yield
    finally:
        for attributes, name, value in before:
            if value is changed:
                del attributes[name]
            else:
                attributes[name] = value


def plan_of(model: Any) -> FPEQuantizationConfig | None:
    """The plan of all that is widened in a model of transformers, to be saved with it.

    Args:
        model: The model. It may be a part of what was widened, or hold it as a part.

    Returns:
        What its config holds, if that says it all; `None` if nothing is widened.

    Raises:
        CheckpointError: The projections of a block are not where they belong.
    """
    from .plan import FPEQuantizationConfig

    specs = _specs(model)
    if not specs:
        return None
    configs = (getattr(module, "config", None) for module in model.modules())
    stored = (getattr(config, "quantization_config", None) for config in configs)
    plans = [plan for plan in stored if isinstance(plan, FPEQuantizationConfig)]
    own = getattr(model.config, "quantization_config", None)
    if isinstance(own, FPEQuantizationConfig) and all(spec in own.specs for spec in specs):
        return own
    if not plans:
        return FPEQuantizationConfig.from_specs(FPEConfig(), specs)
    return FPEQuantizationConfig.from_specs(plans[0].config, specs, plans[0].base_model)


def refresh_plan(model: nn.Module) -> None:
    """Writes the plan of what is widened now where `record_plan` wrote it.

    Not that of a part into the config of the whole, which `save_pretrained` plans anew.
    """
    from .plan import FPEQuantizationConfig

    done: set[int] = set()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        own = getattr(config, "quantization_config", None)
        if isinstance(own, FPEQuantizationConfig) and id(config) not in done:
            done.add(id(config))
            plan = plan_of(module)
            if plan is not None and len(plan.specs) >= len(own.specs):
                config.quantization_config = plan


def _specs(model: nn.Module) -> list[BlockSpec]:
    """The widened blocks of a model, each with its place there."""
    blocks = blocks_of(model)
    for spec, layers in blocks.items():
        if len(layers) < len(projections(spec)):
            raise CheckpointError(
                f"block {spec.name!r} was taken apart: {', '.join(layers)} is away from the "
                "others. Such a model cannot be saved; put them back together."
            )
    return list(blocks)
