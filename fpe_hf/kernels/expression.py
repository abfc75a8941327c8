"""What a whole MLP computes: its block, and what lies between the projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..planning import BlockSpec
from .activations import Activation, recognise
from .pointwise import Node, Source, evaluate

PER_UP, PER_DOWN = 5, 3
"""Tensors of a projection among the arguments of a whole MLP: of an up projection what it reads,
`[tokens, in_features]`, its index, weight, bias and coupling; of the down projection its index,
weight and bias."""

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class Expression:
    """What lies between the projections of a block.

    Attributes:
        spec: The block.
        node: The hidden activations, as a function of the sources.
        order: The sources.
        places: Up projection and number of each source.
        ups: Number of up projections.
        keep: Whether to keep the partial sums for the backward pass, which else makes them anew.
    """

    spec: BlockSpec
    node: Node
    order: tuple[Source, ...]
    places: tuple[tuple[int, int], ...]
    ups: int
    keep: bool

    @cached_property
    def activation(self) -> Activation | None:
        """What the hidden activations are, if that is a usual activation."""
        return recognise(self.node)

    def apart(self, pre: Sequence[Tensor]) -> list[Tensor]:
        """The values of the sources `[tiles, children, parents, tokens]`: views of the
        pre-activations of each up projection, `[tiles, children, sources, parents, tokens]`."""
        return [pre[up].select(2, source) for up, source in self.places]

    def together(self, values: Sequence[Tensor], number: int) -> Tensor:
        """The reverse of `apart`, for one up projection, new where it must be.

        Args:
            values: Of each source.
            number: Which up projection.
        """
        own = {s: value for (up, s), value in zip(self.places, values, strict=True) if up == number}
        count = self.spec.sources_per_up
        if count == 1:
            return own[0].unsqueeze(2)
        some = next(iter(own.values()))
        return torch.stack(
            [own[s] if s in own else torch.zeros_like(some) for s in range(count)], 2
        )

    def hidden(self, values: Sequence[Tensor]) -> Tensor:
        """Hidden activations `[tiles, children, parents, tokens]` from the sources' values."""
        return evaluate(self.node, values, self.order)

    def back(self, values: Sequence[Tensor], to_hidden: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The hidden activations once more, and the gradients of the values of the sources.

        Args:
            values: Of the sources.
            to_hidden: Gradient of the hidden activations.
        """
        with torch.enable_grad():
            leaves = [own.detach().requires_grad_() for own in values]
            hidden = evaluate(self.node, leaves, self.order)
        found = torch.autograd.grad(hidden, leaves, to_hidden.to(hidden.dtype))
        return hidden.detach(), found
