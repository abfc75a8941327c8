"""Finds the config under which a stock model is as wide as a widened one.

The fields that set MLP widths are found by trying: scale a field, build the model without weights,
see which widths change. Where one field sets the width of blocks that need different ones, the
narrower get neurons of zeros, which change nothing. Blocks that no field reaches keep the width
of their dense parent, if their children can be merged.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..discovery import find_mlps
from ..errors import ExportError
from ..layers import FPELayer
from ..modules import blocks_of
from ..planning import BlockSpec
from .fields import ConfigField, numeric_fields, reloaded, stock_config
from .projection import Projection

logger = logging.getLogger(__name__)

Shapes = dict[str, torch.Size]

_MAX_STEPS = 64

_NO_WIDTH = re.compile(
    r"(^|.*_)(ids?|index|version|type|architectures|dtype|seed|labels|bias|act|activation"
    r"|dropout(_\w+)?|drop|layerdrop|eps|epsilon|range|std|theta|prob|temperature|coef|coefficient"
    r"|cost|weight|layers?|heads?|depths?|position_embeddings|vocab_size)"
)
"""Names of fields that say what they are, and that it is no width."""


class Widths:
    """Finds the config of the dense model.

    Attributes:
        projections: The widened projections by name of their weight, and those unwidened ones that
            must grow too because they share a config field with them.
        reached: Hidden widths in the dense model by name, once solved.
    """

    def __init__(self, model: Any, widened: dict[str, Projection], example_inputs: Any) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.model_type = type(model)
        self.projections = dict(widened)
        self.reached: dict[str, int] = {}
        self.parent_config = reloaded(stock_config(model.config))
        self.parent_shapes = shapes_of(self.model_type, self.parent_config)

    @cached_property
    def unwidened(self) -> dict[str, Projection]:
        """Projections of the model's MLP blocks that are not widened, by name of their weight."""
        found = find_mlps(self.model, self.example_inputs)
        on_request = [miss.block for miss in found.near_misses if miss.block is not None]
        return {
            projection.weight: projection
            for block in (*found, *on_request)
            for projection in Projection.all_of_block(self.model, block)
        }

    def solve(self) -> Any:
        """Returns the config; sets `reached`.

        Raises:
            ExportError: No field, or no value of it, gives the widths, and the children of a
                parent differ, so that they cannot be merged.
        """
        skipped: set[ConfigField] = set()
        while True:
            config, reached, tried = self._grow(skipped)
            missing = self.projections.keys() - set().union(*reached.values())
            torn = self._blocks(missing)
            # A field that sets one side of a block, of which none sets the other, is of no use.
            tearing = {item for item, governed in reached.items() if torn & self._blocks(governed)}
            if not tearing:
                break
            skipped |= tearing
        for governed in reached.values():
            self.projections |= governed
        if missing:
            self._merge(missing, tried)
        shapes = shapes_of(self.model_type, config)
        for name, projection in self.projections.items():
            self.reached[name] = projection.hidden_in(shapes[name])
        return config

    def _grow(
        self, skipped: set[ConfigField]
    ) -> tuple[Any, dict[ConfigField, dict[str, Projection]], int]:
        """The config with all fields but some set so that blocks are as wide as they need to be,
        what each of these fields governs, and the number of fields tried."""
        config = self.parent_config
        reached: dict[ConfigField, dict[str, Projection]] = {}
        missing = set(self.projections)
        tried = 0
        for item in self._candidates():
            if not missing:
                break
            if item in skipped:
                continue
            tried += 1
            governed = self._governed(item)
            if not missing & governed.keys():
                continue
            wider = self._reach(config, item, governed)
            if wider is not None:
                config = wider
                reached[item] = governed
                missing -= governed.keys()
        return config, reached, tried

    @cached_property
    def _block_of(self) -> dict[str, BlockSpec]:
        """The widened block of a projection, by name of its weight."""
        return {
            layer.key(name, "weight"): spec
            for spec, layers in blocks_of(self.model).items()
            for name, layer in layers.items()
        }

    def _blocks(self, names: Iterable[str]) -> set[BlockSpec]:
        """The widened blocks that projections belong to."""
        return {self._block_of[name] for name in names if name in self._block_of}

    def _merge(self, missing: set[str], tried: int) -> None:
        """Has the blocks of these projections keep the widths of their parents."""
        blocks = self._blocks(missing)
        for name, projection in self.projections.items():
            if not isinstance(projection.module, FPELayer):
                continue
            layer = self._layer(name)
            if self._block_of[name] not in blocks:
                continue
            if not layer.mergeable:
                coupling = "learned" if layer.spec.learn_coupling else str(layer.spec.coupling)
                raise ExportError(
                    f"no field of {type(self.parent_config).__name__} sets the hidden width of "
                    f"{sorted(missing)[0]!r} alone ({tried} tried), so no stock "
                    "model of this class can hold its children. They could be merged into their "
                    f"parents if coupling were fixed at 1.0 with a shared bias, but it is "
                    f"{coupling}."
                )
            self.projections[name] = projection.merge()
        logger.warning(
            "%s has no field for the hidden widths of %d blocks (%s first): their children, which "
            "are equal at coupling 1, are merged, and the blocks keep their parents' width.",
            type(self.parent_config).__name__,
            len(blocks),
            min(spec.here(spec.name) for spec in blocks),
        )

    def _layer(self, name: str) -> FPELayer:
        layer = self.projections[name].module
        assert isinstance(layer, FPELayer)  # what is missing was widened
        return layer

    def _candidates(self) -> Iterator[ConfigField]:
        """Fields that may be widths: those that equal one, ratios to one, unset ones, the rest.

        Each costs a model built; so those whose names rule them out are not tried.
        """
        parents = {projection.parents for projection in self.projections.values()}
        inputs = {projection.inputs for projection in self.projections.values()}
        ranked = []
        for item in numeric_fields(self.parent_config):
            if _NO_WIDTH.fullmatch(item.name):
                continue
            value = item.get(self.parent_config)
            if value in parents:
                rank = 0
            elif value is not None and any(value * width in parents for width in inputs):
                rank = 1
            else:
                rank = 2 if value is None else 3
            ranked.append((rank, str(item), item))
        yield from (item for _, _, item in sorted(ranked, key=lambda entry: entry[:2]))

    def _governed(self, item: ConfigField) -> dict[str, Projection]:
        """The projections whose hidden width the field sets, if it sets no other shape."""
        value = item.get(self.parent_config)
        widest = max(projection.parents for projection in self.projections.values())
        scaled = 2 * (widest if value is None else value)
        _, shapes = self._try(self.parent_config, item, scaled)
        if shapes is None or shapes.keys() != self.parent_shapes.keys():
            return {}
        changed = {key for key, shape in shapes.items() if shape != self.parent_shapes[key]}
        known = self.projections
        names = changed - _biases(known)
        if not names & known.keys():
            return {}
        if not names <= known.keys():
            known = self.unwidened | known
            names -= _biases(known)
            if not names <= known.keys():
                return {}
        governed = {name: own for name, own in known.items() if name in names}
        if not all(_grows_hidden(p, self.parent_shapes[n], shapes[n]) for n, p in governed.items()):
            return {}
        return governed

    def _reach(self, config: Any, item: ConfigField, governed: dict[str, Projection]) -> Any:
        """The config with a value of the field at which every governed block is at least as wide
        as it needs to be, or `None`."""
        target = max(projection.hidden for projection in governed.values())
        parents = min(projection.parents for projection in governed.values())
        start = item.get(config)
        first: Any = target if start is None else start * target / parents
        step: float = start / parents if isinstance(start, float) else 1
        values = [first + count * step for count in range(_MAX_STEPS)]
        if start is not None:
            values.append(start * parents / target)  # a field that divides
        for value in values:
            if not isinstance(start, float):
                value = math.ceil(value)
            changed, shapes = self._try(config, item, value)
            if shapes is not None and all(
                projection.hidden_in(shapes[name]) >= projection.hidden
                for name, projection in governed.items()
            ):
                return changed
        return None

    def _try(self, config: Any, item: ConfigField, value: Any) -> tuple[Any, Shapes | None]:
        """A config with one field changed, and the shapes it gives, or `None` if it is refused."""
        changed = copy.deepcopy(config)
        try:
            item.set(changed, value)
            changed = reloaded(changed)  # now with the fields that follow from this one
            return changed, shapes_of(self.model_type, changed)
        except Exception:  # whatever a config or a model raises at a value it does not like
            return changed, None


def shapes_of(model_type: type[Any], config: Any) -> Shapes:
    """Shapes of the parameters that a stock model of this config has."""
    transformers_logger = logging.getLogger("transformers")
    level = transformers_logger.level
    transformers_logger.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            stock: nn.Module = model_type(copy.deepcopy(config))
    finally:
        transformers_logger.setLevel(level)
    return {name: parameter.shape for name, parameter in stock.named_parameters()}


def _biases(projections: dict[str, Projection]) -> set[str]:
    return {item.bias for item in projections.values() if item.bias is not None}


def _grows_hidden(projection: Projection, before: torch.Size, after: torch.Size) -> bool:
    """Whether two shapes of a projection's weight differ in the number of hidden neurons alone."""
    different = [
        axis for axis, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    ]
    return different == [projection.hidden_axis]
