"""`to_dense`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from ..auditing import openness
from ..belongings import HOOKS
from ..errors import ConfigError, ExportError
from ..fusing import unfuse
from ..layers import FPELayer, move_out
from ..modules import fpe_layers, has_config, host_of
from .fields import assign, reloaded
from .projection import Projection
from .widths import Widths, shapes_of

logger = logging.getLogger("fpe_hf")

Model = TypeVar("Model", bound=nn.Module)


def to_dense(
    model: Model, example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None
) -> Model:
    """Makes a stock model of a widened one; see `fpe_hf.to_dense`."""
    warning = openness(model)
    if warning is not None:
        logger.warning("%s The dense model has as many.", warning)
    for name, layer in fpe_layers(model):
        layer.index_buffers()
        _check_plain(name, layer)
    layers = (Projection.of_layer(name, layer) for name, layer in fpe_layers(model))
    widened = {projection.weight: projection for projection in layers}
    if not widened:
        raise ConfigError("The model has no widened block; there is nothing to make dense.")
    if not has_config(model):
        return _copy_with(model, widened, {})
    widths = Widths(model, widened, example_inputs)
    config = widths.solve()
    dense: Any = _copy_with(model, widths.projections, widths.reached)
    # Submodules refer to the config and its parts: change those objects, do not replace them.
    assign(dense.config, config)
    # Let it be saved in the usual format again (see `keep_names`).
    vars(dense).pop("_weight_conversions", None)
    _check_loadable(dense)
    return dense  # type: ignore[no-any-return]


def _copy_with(model: Model, projections: dict[str, Projection], widths: dict[str, int]) -> Model:
    """A deep copy of the model with stock projections of the given hidden widths."""
    memo: dict[int, Any] = {}
    hidden = {name: widths.get(name, item.hidden) for name, item in projections.items()}
    stacks = {name: item for name, item in projections.items() if item.stacked}
    for name, item in projections.items():
        if not item.stacked:
            memo[id(item.module)] = item.dense(hidden[name])
    for module in list(memo.values()):  # hooks may refer to the model
        vars(module).update({name: copy.deepcopy(vars(module)[name], memo) for name in HOOKS})
    dense = copy.deepcopy(model, memo)
    unfuse(dense)
    for name, projection in stacks.items():
        move_out(host_of(dense, name)[0])
        projection.put_stack(dense, hidden[name])
    return dense


def _check_plain(name: str, layer: FPELayer) -> None:
    """Raises `ExportError` if a layer computes its weights from other tensors."""
    for own in ("weight", "bias", "coupling"):
        if getattr(layer, own, None) is not None and own not in layer.numbers():
            raise ExportError(
                f"{layer.key(name, own)!r} is computed from other tensors, which a dense model "
                "cannot keep: first make it a parameter again, as by torch.nn.utils.parametrize."
                "remove_parametrizations or torch.nn.utils.prune.remove."
            )


def _check_loadable(dense: Any) -> None:
    """Raises `ExportError` unless a stock model of its config has the parameters of `dense`."""
    own = {name: p.shape for name, p in dense.named_parameters()}
    try:
        stock = shapes_of(type(dense), reloaded(dense.config))
    except Exception as failure:  # whatever a config or a model raises
        raise ExportError(f"the dense model's config does not load: {failure}") from failure
    if own != stock:
        different = sorted(set(own.items()) ^ set(stock.items()))[0][0]
        raise ExportError(f"{different!r} differs between the dense model and its config.")
