"""Reading a model's projections and putting others in their place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .belongings import hand_over
from .discovery import MLPBlock
from .errors import ConfigError, PlanError
from .layers import EXPERTS_STOCKS, FPELayer, move_in
from .linear import bias_of, features, is_linear, make_bare, stock_of, twin_of, weight_of
from .planning import BlockSpec, ParentWeights


def has_config(model: nn.Module) -> bool:
    """Whether a model is one of transformers', built from a config and saved with it."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


def opened(model_or_id: Any, load: Callable[[Any], nn.Module]) -> nn.Module:
    """The model that is meant.

    Args:
        model_or_id: A model, or its folder or Hub id.
        load: Loads it by that.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(model_or_id, nn.Module):
        return model_or_id
    if isinstance(model_or_id, (str, os.PathLike)):
        return load(model_or_id)
    raise ConfigError(
        f"{type(model_or_id).__name__} is no model: give a torch module, a folder or a Hub id."
    )


def core_of(model: nn.Module) -> nn.Module:
    """The transformers model in one of sentence-transformers; any other model itself.

    Raises:
        ConfigError: There is none, or several.
    """
    homes = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "sentence_transformers" not in homes:
        return model
    found = list(_pretrained_in(model))
    if len(found) == 1:
        return found[0][1]
    names = ", ".join(f"model.{name}" for name, _ in found) or "none"
    raise ConfigError(
        f"{type(model).__name__} must hold one transformers model; found: {names}. "
        "Give one of those."
    )


def _pretrained_in(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost transformers models in a module, by name."""
    for own, child in module.named_children():
        full = f"{name}.{own}" if name else own
        if has_config(child):
            yield full, child
        else:
            yield from _pretrained_in(child, full)


def stock_kind(module: nn.Module) -> str:
    """The stock (see `fpe_hf.linear`) of a projection."""
    return stock_of(module) or "linear"


def take_weights(model: nn.Module, block: MLPBlock) -> ParentWeights:
    """The numbers of a block (views of the model's own), fused ups taken apart.

    Raises:
        PlanError: They live on the meta device.
    """
    if block.experts > 1:
        return _take_experts(model, block)
    ups = [model.get_submodule(name) for name in block.ups]
    down = model.get_submodule(block.down)
    _check_values(block, [p for module in (*ups, down) for p in module.parameters()])
    return ParentWeights(
        ups=tuple(_by_source(weight_of(up), block) for up in ups),
        up_biases=tuple(
            None if bias is None else _by_source(bias, block) for bias in map(bias_of, ups)
        ),
        down=weight_of(down),
        down_bias=bias_of(down),
    )


def _take_experts(model: nn.Module, block: MLPBlock) -> ParentWeights:
    names = (*block.ups, block.down)
    stacks = [model.get_parameter(name).detach() for name in names]
    biases = [
        None if name is None else model.get_parameter(name).detach() for name in block.bias_names
    ]
    _check_values(block, [*stacks, *(bias for bias in biases if bias is not None)])
    # [experts, out, in], whatever they are stored as.
    *ups, down = (t.mT if turned else t for t, turned in zip(stacks, block.transposed, strict=True))
    *up_biases, down_bias = biases
    return ParentWeights(
        ups=tuple(_stacked_by_source(up, block) for up in ups),
        up_biases=tuple(b if b is None else _stacked_by_source(b, block) for b in up_biases),
        down=down.transpose(0, 1).flatten(1),
        down_bias=None if down_bias is None else down_bias.flatten(),
    )


def _check_values(block: MLPBlock, tensors: Iterable[Tensor]) -> None:
    if any(tensor.is_meta for tensor in tensors):
        raise PlanError(
            f"block {block.name!r} has no weights (meta device): load the model before widening it."
        )


def _stacked_by_source(rows: Tensor, block: MLPBlock) -> Tensor:
    """`[experts, sources_per_up * parents, ...]` -> `[sources_per_up, experts * parents, ...]`."""
    return torch.cat([_by_source(own, block) for own in rows], dim=1)


def _by_source(rows: Tensor, block: MLPBlock) -> Tensor:
    """`[sources_per_up * parents, ...]` in the parent's row order -> `[sources_per_up, ...]`."""
    rest = rows.shape[1:]
    if block.fused == "interleaved":
        return rows.reshape(block.parents, 2, *rest).transpose(0, 1)
    return rows.reshape(2 if block.fused else 1, block.parents, *rest)


def host_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the parameter `name`, and the parameter's name there."""
    prefix, _, own = name.rpartition(".")
    return model.get_submodule(prefix), own


def stocks_of(model: nn.Module, spec: BlockSpec, names: Mapping[str, str]) -> dict[str, str]:
    """The stock (see `fpe_hf.linear`, `fpe_hf.layers.experts`) of a block's parent projections.

    Args:
        model: The model that holds them.
        spec: The block.
        names: Name of a projection in the spec -> name in this model.
    """
    if spec.experts > 1:
        turned = zip(projections(spec), spec.transposed, strict=True)
        return {name: EXPERTS_STOCKS[transposed] for name, transposed in turned}
    return {name: stock_kind(model.get_submodule(names[name])) for name in projections(spec)}


def put_layers(
    model: nn.Module, spec: BlockSpec, layers: Mapping[str, FPELayer], names: Mapping[str, str]
) -> None:
    """Puts the layers of a block in the place of its parent projections.

    Args:
        model: The model.
        spec: The block.
        layers: Name of a projection in the spec -> layer.
        names: Name of a projection in the spec -> name in this model.
    """
    if spec.experts == 1:
        for name, layer in layers.items():
            replace_module(model, model.get_submodule(names[name]), layer)
        return
    for name, bias in zip(projections(spec), spec.bias_names, strict=True):
        host, own = host_of(model, names[name])
        move_in(host, layers[name], own, bias if bias is None else bias.rpartition(".")[2])


def projections(spec: BlockSpec) -> tuple[str, ...]:
    """The names of a block's projections: the ups, then the down."""
    return (*spec.ups, spec.down)


def replace_module(model: nn.Module, old: nn.Module, new: FPELayer) -> None:
    """Puts `new` wherever `old`, or a twin tied to it, is registered.

    It takes over what others put on `old`: see `hand_over`.
    """
    hand_over(old, new, make_bare(new.stock))
    hook = getattr(old, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is old or (child is not None and twin_of(child, old))
    ]
    for parent, name in places:
        parent._modules[name] = new
        _leave_fast_path(model, parent)
    new.places = len(places)


def _leave_fast_path(model: nn.Module, layer: nn.Module) -> None:
    """Has a torch encoder call its projections rather than hand their weights to one kernel."""
    if not isinstance(layer, nn.TransformerEncoderLayer):
        return
    layer.activation_relu_or_gelu = 0
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False


def fpe_layers(model: nn.Module) -> Iterator[tuple[str, FPELayer]]:
    """Every widened projection of a model once, with its first dotted name."""
    for name, module in model.named_modules():
        if isinstance(module, FPELayer):
            yield name, module


def nonzeros(model: nn.Module) -> int:
    """Trainable and frozen numbers of a model, without those that open layers hold at zero."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for _, layer in fpe_layers(model):
        total -= sum(number.numel() for number in layer.numbers().values()) - layer.nonzeros()
    return total


_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""Parts of names that torch's wrappers add, and leave out of state dicts."""


def blocks_of(model: nn.Module) -> dict[BlockSpec, dict[str, FPELayer]]:
    """The widened blocks of a model, each with its place there: their layers by dotted name.

    Blocks of parts that were widened one by one may differ in nothing but their place.
    """
    blocks: dict[BlockSpec, dict[str, FPELayer]] = {}
    for name, layer in fpe_layers(model):
        spec = layer.spec
        born = spec.down if layer.index is None else spec.ups[layer.index]
        here = layer.key(name, "weight") if layer.host_names else name
        here = ".".join(part for part in here.split(".") if part not in _WRAPPERS)
        placed = replace(spec, place=_place(born, here))
        blocks.setdefault(placed, {})[name] = layer
    return blocks


def _place(born: str, here: str) -> tuple[str, ...]:
    """What a name began with when its block was widened, and what it begins with now."""
    old, new = born.split("."), here.split(".")
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    place = tuple("".join(f"{part}." for part in parts) for parts in (old, new))
    return place if any(place) else ()


def check_skeleton(model: nn.Module, spec: BlockSpec, names: Mapping[str, str]) -> list[str]:
    """What keeps the stock modules of `model` from being the parents of a widened block.

    Args:
        model: A stock model, possibly on the meta device.
        spec: The block.
        names: The spec's module names -> names in this model.

    Returns:
        Complaints; none if the block fits.
    """
    if spec.experts > 1:
        return _check_stacks(model, spec, names)
    rows = spec.sources_per_up * spec.parents
    expected = {
        up: (spec.in_features, rows, b) for up, b in zip(spec.ups, spec.up_biases, strict=True)
    }
    expected[spec.down] = (spec.parents, spec.out_features, spec.down_bias)
    complaints = []
    for name, (inputs, outputs, bias) in expected.items():
        module = model.get_submodule(names[name])
        if not is_linear(module):
            complaints.append(f"{name!r} is a {type(module).__name__}, not a linear projection")
        elif features(module) != (inputs, outputs):
            complaints.append(f"{name!r} is {features(module)}, not {(inputs, outputs)}")
        elif (bias_of(module) is not None) != bias:
            complaints.append(f"{name!r} has {'no' if bias else 'a'} bias")
    return complaints


def _check_stacks(model: nn.Module, spec: BlockSpec, names: Mapping[str, str]) -> list[str]:
    """`check_skeleton` for parameters that stack experts."""
    rows = spec.sources_per_up * spec.parents
    matrices = [(rows, spec.in_features)] * len(spec.ups) + [(spec.out_features, spec.parents)]
    complaints = []
    for name, (outputs, inputs), turned, bias in zip(
        projections(spec), matrices, spec.transposed, spec.bias_names, strict=True
    ):
        host, own = host_of(model, names[name])
        expected: dict[str, tuple[int, ...]] = {}
        expected[own] = (spec.experts, *((inputs, outputs) if turned else (outputs, inputs)))
        if bias is not None:
            expected[bias.rpartition(".")[2]] = (spec.experts, outputs)
        for parameter, shape in expected.items():
            found = host._parameters.get(parameter)
            size = None if found is None else tuple(found.shape)
            if size != shape:
                complaints.append(f"{parameter!r} beside {name!r} is {size}, not {shape}")
    return complaints
