"""`widen`: the way in. Find blocks, plan them all, then put the widened layers in place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

from torch import nn
from tqdm.auto import tqdm

from .checkpoint.files import module_folders
from .checkpoint.loading import load_model
from .checkpoint.saving import record_plan
from .closing import resume_closed
from .config import FPEConfig, FPEFields
from .discovery import MLPBlock, find_mlps
from .errors import ConfigError
from .fusing import fuse
from .layers import build_layers
from .modules import core_of, fpe_layers, opened, put_layers, stocks_of, take_weights
from .planning import BlockPlan, BlockSpec, plan_block
from .planning.spec import OPEN
from .selection import select_blocks
from .splits import LEARNED

logger = logging.getLogger("fpe_hf")

Model = TypeVar("Model", bound=nn.Module)


@overload
def widen(
    model_or_id: Model,
    config: FPEConfig | Mapping[str, Any] | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    **overrides: Unpack[FPEFields],
) -> Model: ...


@overload
def widen(
    model_or_id: str | os.PathLike[str],
    config: FPEConfig | Mapping[str, Any] | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    **overrides: Unpack[FPEFields],
) -> Any: ...


def widen(
    model_or_id: nn.Module | str | os.PathLike[str],
    config: FPEConfig | Mapping[str, Any] | None = None,
    *,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    **overrides: Unpack[FPEFields],
) -> Any:
    """Widens the MLP blocks of a model under a fixed number of non-zeros (paper section 3).

    Every parent neuron becomes `alpha` children that divide its inputs among them. The model is
    changed in place, after all blocks have been planned: an error leaves it as it was.

    Args:
        model_or_id: A model, or a Hub id or local folder (loaded with the class its config names).
            Of a model of sentence-transformers, the transformer in it is widened.
        config: What to do, as an `FPEConfig` or a mapping of its fields; the defaults are the
            paper's.
        example_inputs: Inputs for the one traced forward pass, if fpe_hf cannot make them itself.
        **overrides: Fields of `FPEConfig` that take precedence over `config`.

    Returns:
        The widened model, the same object if a model was given.

    Raises:
        ConfigError: A field is unknown or its value not accepted, or the model is already widened
            or quantized.
        DiscoveryError: The model cannot be traced, or has no MLP block.
        TargetError: `targets`, `exclude` or `overrides` name nothing.
        PlanError: A block's shapes or weights forbid it.

    Example:
        >>> model = fpe_hf.widen(model, alpha=4, split="learned")
    """
    asked = FPEConfig.of(config).with_overrides(**overrides)
    model = opened(model_or_id, load_model)
    if model is not model_or_id:
        _warn_of_modules(model_or_id)
    core = core_of(model)
    pretrained = bool(getattr(core, "name_or_path", ""))
    plans = plan_blocks(core, asked, example_inputs)
    specs = [plan.spec for _, plan in plans]
    apply_plans(core, plans, asked)
    if pretrained:
        warn_unless_exact(specs)
    return model


def _warn_of_modules(source: Any) -> None:
    """Says that a model of sentence-transformers was loaded without its other modules."""
    if len(module_folders(Path(source))) > 1:
        logger.warning(
            "%s is a model of sentence-transformers, and only its transformer was loaded. To keep "
            "the other modules, use `fpe-hf widen` or widen(SentenceTransformer(...)).",
            source,
        )


Plans = list[tuple[MLPBlock, BlockPlan]]


def plan_blocks(
    model: nn.Module,
    config: FPEConfig,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> Plans:
    """The first half of `widen`: finds the blocks and plans each; the model stays as it is.

    Args:
        model: A model that is not widened.
        config: What to do.
        example_inputs: See `widen`.

    Raises:
        ConfigError: See `widen`.
        DiscoveryError: See `widen`.
        TargetError: See `widen`.
        PlanError: See `widen`.
    """
    check_fresh(model)
    selected = select_blocks(find_mlps(model, example_inputs), config)
    return [
        (block, plan_block(block, take_weights(model, block), own))
        for block, own in tqdm(selected, desc="Planning", unit="block", delay=2, leave=False)
    ]


def apply_plans(model: nn.Module, plans: Plans, config: FPEConfig) -> None:
    """The second half of `widen`: puts widened layers in place.

    Any model of the same structure will do, so what belongs to the weights of a planned model, such
    as the moments of an optimizer, can be divided among the children like the weights themselves.

    Args:
        model: The model to change.
        plans: Of its blocks. They are used up, to keep memory low: the list is empty afterwards.
        config: What was asked for, to be saved with the model.
    """
    specs = [plan.spec for _, plan in plans]
    plans.reverse()
    while plans:
        block, plan = plans.pop()
        replace_block(model, block, plan)
    fuse(model)
    resume_closed(model)
    record_plan(model, config, specs)


def check_fresh(model: nn.Module) -> None:
    """Raises `ConfigError` if a model is widened already, or quantized."""
    if next(fpe_layers(model), None) is not None:
        raise ConfigError("The model is already widened; start again from its dense parent.")
    quantization = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantization is not None:
        raise ConfigError(
            f"The model is quantized ({type(quantization).__name__}): dequantize it first."
        )


def replace_block(model: nn.Module, block: MLPBlock, plan: BlockPlan) -> None:
    """Puts the widened layers of one block in place."""
    names = {name: name for name in (*block.ups, block.down)}
    stocks = stocks_of(model, plan.spec, names)
    layers = build_layers(plan, take_weights(model, block), stocks)
    put_layers(model, plan.spec, layers, names)


def warn_unless_exact(specs: Iterable[BlockSpec]) -> None:
    """Says that a pretrained model computes something else once it has these blocks, and why."""
    reasons = dict.fromkeys(filter(None, map(_change, specs)))
    if reasons:
        logger.warning(
            "The outputs of this pretrained model change until it is trained further: %s. "
            'split="learned" starts exactly at its parent and lets siblings part; for pretrained '
            "encoders no gain was measured with any setting (docs/learned-splits.md).",
            ", ".join(reasons),
        )


def _change(spec: BlockSpec) -> str | None:
    """What keeps a block from starting exactly at its parent; `None` if nothing does."""
    if spec.split == LEARNED or (spec.layout == OPEN and spec.alpha == 1):
        return None
    if spec.coupling < 1.0:
        return "children see parts of what their parents saw"
    if spec.fan_out == "replicate":
        return 'fan_out="replicate" copies outgoing weights'
    if spec.bias == "child" and any(spec.up_biases):
        return 'pruning pays for bias="child"'
    return "pruning pays for the learned couplings" if spec.learn_coupling else None
