"""An open model that is given the tensors of a closed one closes, and takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import OpenLayer
from ..layers.base import INDEX_BUFFERS
from ..modules import fpe_layers
from ..planning import BlockSpec
from .block import OpenBlock, open_blocks
from .pack import closed_layers, closed_spec, put

_SHAPE = (
    *("ups", "down", "alpha", "in_features", "parents", "out_features", "fused", "experts"),
    *("bias", "up_biases", "down_bias"),
)


def resume_closed(model: nn.Module) -> None:
    """Has an open model close by itself when it is to load the tensors of a closed one: training
    that was cut off after the budget had been closed resumes."""
    if open_blocks(model):
        model.register_load_state_dict_pre_hook(_fit)


def _fit(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Closes the blocks whose packed weights a state dict holds; they are empty then, to be loaded
    next. Before, what they will load is verified: a damaged state changes nothing."""
    names = {layer: prefix + name for name, layer in fpe_layers(model)}
    found = []
    for block in open_blocks(model):
        given = [_given(layer, names[layer], state_dict) for layer in block.layers]
        if all("weight" in own and own["weight"].dim() == 1 for own in given):
            layers = closed_layers(block, _closed_spec(block, given))
            for layer, old, own in zip(layers, block.layers, given, strict=True):
                layer.verify(names[old], own)
            found.append((block, layers))
    for block, layers in found:
        put(model, block, layers)


def _given(layer: OpenLayer, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict holds for the closed layer in the place of an open one."""
    index = {own: state_dict.get(layer.key(name, own)) for own in INDEX_BUFFERS}
    given = {own: tensor for own, tensor in index.items() if tensor is not None}
    return {**layer.of_state(name, state_dict), **given}


def close_as(model: nn.Module, specs: Sequence[BlockSpec]) -> None:
    """Closes the open blocks of a model, in order; their weights are empty then.

    Raises:
        ConfigError: These are other blocks.
    """
    blocks = open_blocks(model)
    names = [block.spec.name for block in blocks]
    if blocks and names != [spec.name for spec in specs]:
        raise ConfigError(
            f"the state is of other blocks, {', '.join(spec.name for spec in specs)}; the model's "
            f"are {', '.join(names)}."
        )
    for block, spec in zip(blocks, specs, strict=False):
        for name in _SHAPE:
            if getattr(spec, name) != getattr(block.spec, name):
                raise ConfigError(
                    f"the state is of other blocks: {name}={getattr(spec, name)!r} in "
                    f"{spec.name!r}, but {getattr(block.spec, name)!r} in the model."
                )
    for block, spec in zip(blocks, specs, strict=False):
        put(model, block, closed_layers(block, spec))


def _closed_spec(block: OpenBlock, given: list[dict[str, Tensor]]) -> BlockSpec:
    """The closed block that has tensors of these names and sizes."""
    *ups, down = (own["weight"].numel() for own in given)
    return closed_spec(block, "codes" not in given[0], ups, down)
