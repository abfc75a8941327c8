"""Loading: dense models to widen by name, and widened ones from their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..closing import resume_closed
from ..errors import CheckpointError
from ..fusing import fuse
from ..layers import FPELayer, empty_layers
from ..layers.checksum import UNVERIFIED
from ..modules import check_skeleton, fpe_layers, projections, put_layers, stocks_of
from ..planning import BlockSpec
from .files import model_place, stored_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLACE = ("revision", "token", "cache_dir", "subfolder", "local_files_only")


def load_model(name_or_path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a model with the class its config names.

    Args:
        name_or_path: Hub id or local folder.
        **kwargs: Passed to `from_pretrained`; what says where to look reaches the config, too.

    Returns:
        The model, of the class in `config.architectures` if transformers maps it to the model
        type, else of `AutoModel`'s choice.

    Raises:
        CheckpointError: Tensors are missing that the class itself would have saved, or any of a
            widened model.
    """
    from transformers import AutoConfig

    place = {name: kwargs[name] for name in _PLACE if name in kwargs}
    if "subfolder" not in place:
        name_or_path = model_place(name_or_path)
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **place)
    kind = model_class(config)
    model, report = kind.from_pretrained(
        name_or_path, output_loading_info=True, trust_remote_code=False, **kwargs
    )
    missing = sorted(report["missing_keys"])
    if missing and (is_saved_class(model) or stored_plan(vars(config)) is not None):
        raise CheckpointError(
            f"{os.fspath(name_or_path)!r} lacks {len(missing)} tensors of {type(model).__name__}, "
            f"{missing[0]!r} first; transformers would start them at random. If that is meant, "
            "load the model yourself and pass it on."
        )
    loaded: PreTrainedModel = model
    return loaded


def is_saved_class(model: PreTrainedModel) -> bool:
    """Whether a model has the class its checkpoint was saved from: then nothing may be missing."""
    return type(model).__name__ in (model.config.architectures or ())


def model_class(config: Any) -> Any:
    """The class that `config.architectures` names, taken from transformers' own registries.

    The name is data from a checkpoint: it is compared, never imported.
    """
    from transformers import AutoModel
    from transformers.models.auto import modeling_auto

    names = set(config.architectures or ())
    for mapping in vars(modeling_auto).values():
        if type(mapping).__name__ != "_LazyAutoMapping" or type(config) not in mapping:
            continue
        classes = mapping[type(config)]
        for candidate in classes if isinstance(classes, (list, tuple)) else (classes,):
            if candidate.__name__ in names:
                return candidate
    return AutoModel


def empty_model(config: Any) -> Any:
    """The model of a config on the meta device, which takes no memory whatever its size."""
    kind = model_class(config)
    with torch.device("meta"):
        return (
            kind(config)
            if hasattr(kind, "config_class")
            else kind.from_config(config, trust_remote_code=False)
        )


def insert_empty_layers(model: PreTrainedModel, specs: Sequence[BlockSpec]) -> None:
    """Replaces the stock projections of a model without weights by empty widened layers.

    Blocks that the model does not have at all are passed over: a checkpoint may hold a head or a
    tower more than the class it is loaded into.

    Raises:
        CheckpointError: A block fits the model only in part, or none is there.
    """
    inserted = 0
    for spec, found in blocks_of(model, specs):
        down = found[spec.down]
        weight = model.get_parameter(down if spec.experts > 1 else f"{down}.weight")
        stocks = stocks_of(model, spec, found)
        _tie(model, found.values())
        layers = empty_layers(spec, stocks, weight.dtype, weight.device)
        put_layers(model, spec, layers, found)
        inserted += 1
    resume_closed(model)
    _keep_initialized(model)
    if not inserted:
        raise CheckpointError(
            f"none of the {len(specs)} blocks of the FPE config is in {type(model).__name__}; "
            f"the first is {specs[0].name!r}. Load the class the model was saved from."
        )


def blocks_of(
    model: PreTrainedModel, specs: Sequence[BlockSpec]
) -> Iterator[tuple[BlockSpec, dict[str, str]]]:
    """The blocks that a model without weights has, each with its projections' names in the model.

    Raises:
        CheckpointError: A block fits the model only in part.
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rename = _renaming(model)
    for spec in specs:
        known = parameters if spec.experts > 1 else modules
        prefix = model.base_model_prefix
        names = {
            name: _resolve(here, known, prefix) or _resolve(rename(here), known, prefix)
            for name, here in zip(projections(spec), map(spec.here, projections(spec)), strict=True)
        }
        found = {name: own for name, own in names.items() if own is not None}
        if 0 < len(found) < len(names):
            raise CheckpointError(
                f"block {spec.name!r} of the FPE config names {sorted(set(names) - set(found))}, "
                f"which {type(model).__name__} does not have, beside {sorted(found)}, which it has."
            )
        if found:
            complaints = check_skeleton(model, spec, found)
            if complaints:
                raise CheckpointError(f"block {spec.name!r} does not fit: {'; '.join(complaints)}.")
            yield spec, found


def _renaming(model: PreTrainedModel) -> Callable[[str], str]:
    """Renames modules and parameters of a checkpoint as transformers renames its tensors.

    So the text model of a vision-language checkpoint is found where it stands alone.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]

    def rename(name: str) -> str:
        key: str = rename_source_key(f"{name}.weight", renamings, [])[0]
        return key.removesuffix(".weight")

    return rename


def _keep_initialized(model: PreTrainedModel) -> None:
    """Has transformers leave modules alone that hold widened layers and no other numbers.

    After loading it lets the model's class initialize every module once more, numbers that were
    loaded excepted; some classes (BLT) do so by the shapes of the stock projections.
    """
    for module in model.modules():
        others = [child for child in module.children() if not isinstance(child, FPELayer)]
        own = chain(module._parameters, module._buffers, *(child.state_dict() for child in others))
        if len(others) < len(list(module.children())) and next(own, None) is None:
            module._is_hf_initialized = True


def _tie(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Ties the projections of these names to those that a loaded model ties them to.

    transformers does so only when it has loaded the weights: too late to know every place of a
    block that layers share.
    """
    wanted = set(names)
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        host, _, own = target.rpartition(".")
        if {host, source.rpartition(".")[0]} & wanted:
            model.get_submodule(host)._parameters[own] = model.get_parameter(source)


def _resolve(name: str, names: Container[str], prefix: str) -> str | None:
    """The name of `names` that is meant, with the base model's prefix added or taken off."""
    candidates = (name, name.removeprefix(prefix + "."), f"{prefix}.{name}")
    return next((known for known in candidates if known in names), None)


def finish_loading(model: PreTrainedModel) -> None:
    """Checks the index buffers of a loaded model and derives those that are never stored.

    Raises:
        CheckpointError: An index is out of range, or a mask does not fit its weights.
    """
    for name, layer in fpe_layers(model):
        layer.settle()
        if not any(tensor.is_meta for tensor in layer.stored().values()):
            layer.check(name)
            layer.checksum = torch.full_like(layer.checksum, UNVERIFIED)
    fuse(model)
