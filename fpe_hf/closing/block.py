"""`OpenBlock`: the layers of a block whose budget is open, and its masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import OpenDown, OpenLayer, OpenUp
from ..modules import blocks_of
from ..planning import BlockSpec
from ..planning.draw import draw_up_children
from ..splits import LEARNED


@dataclass(frozen=True)
class OpenBlock:
    """A block whose budget is open.

    Attributes:
        spec: The block, with its place in the model.
        ups: Its up projections, in the order of the spec.
        down: Its down projection.
    """

    spec: BlockSpec
    ups: tuple[OpenUp, ...]
    down: OpenDown

    @property
    def layers(self) -> tuple[OpenLayer, ...]:
        """The ups, then the down."""
        return (*self.ups, self.down)

    @property
    def start(self) -> int:
        """How many weights of an expert are alive before the budget begins to close."""
        spec = self.spec
        readers = spec.alpha if spec.split == LEARNED else 1
        writers = 1 if spec.fan_out == "partition" else spec.alpha
        columns = readers * spec.sources * spec.in_features + writers * spec.out_features
        return columns * spec.parents

    @cached_property
    def preferred(self) -> Tensor:
        """Of children whose weights for an input are equally large, the one that reads it: uint8
        `[experts, parents, inputs]` on the CPU, as the random split has it."""
        children = draw_up_children(self.spec)
        return children.view(self.spec.experts, self.spec.parents, -1)

    @torch.no_grad()
    def magnitudes(self, expert: int) -> tuple[list[Tensor], Tensor]:
        """Of one expert's weights (float32): above zero for all that are alive, zero for others.

        Returns:
            Per up module `[sources, alpha, parents, inputs]`, and `[outputs, alpha, parents]`.
        """
        *ups, down = (self._magnitudes(layer, expert) for layer in self.layers)
        return ups, down

    def _magnitudes(self, layer: OpenLayer, expert: int) -> Tensor:
        weight = layer.by_child(layer.weight.detach())[:, expert].float().abs()
        mask = layer.by_child(layer.mask)[:, expert]
        # Where training has diverged, the counts still hold.
        limits = torch.finfo(torch.float32)
        return weight.nan_to_num(limits.max, limits.max).clamp_min_(limits.tiny).mul_(mask)

    @torch.no_grad()
    def keep(self, expert: int, ups: list[Tensor], down: Tensor) -> None:
        """Sets which of one expert's weights are alive, as `magnitudes` lays them out."""
        for layer, mask in zip(self.layers, (*ups, down), strict=True):
            layer.by_child(layer.mask)[:, expert].copy_(mask)


def open_blocks(model: nn.Module) -> list[OpenBlock]:
    """The blocks of a model whose budget is open.

    Raises:
        ConfigError: Some layers of a block are not where the others are.
    """
    found = []
    for spec, layers in blocks_of(model).items():
        ups = {own.index: own for own in layers.values() if isinstance(own, OpenUp)}
        downs = [own for own in layers.values() if isinstance(own, OpenDown)]
        if downs or ups:
            if not downs or len(ups) < len(spec.ups):
                raise ConfigError(
                    f"block {spec.name!r} was taken apart: {', '.join(layers)} is away from the "
                    "others, as by PEFT's modules_to_save. Train all weights of a block, or "
                    "none, in their places."
                )
            ordered = tuple(ups[index] for index in range(len(spec.ups)))
            found.append(OpenBlock(spec, ordered, downs[0]))
    return found
