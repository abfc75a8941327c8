"""What training an arm takes: floating-point operations and trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What training takes.

    Attributes:
        flops: Operations of training on one example, in the mean.
        parameters: Trainable parameters, at most.
    """

    flops: float
    parameters: int

    def then(self, other: Cost, share: float) -> Cost:
        """Of a training that takes this for a share of it (0 to 1), and then another."""
        flops = share * self.flops + (1 - share) * other.flops
        return Cost(flops, max(self.parameters, other.parameters))


def cost_of(model: Any, inputs: Mapping[str, Any]) -> Cost:
    """Counts the multiplications of a forward pass, as they are computed.

    A pass forward takes two operations for every weight that is multiplied, and the pass backward
    twice as many: six in all. Layers that multiply a whole matrix, zeros included, are counted so.

    Args:
        model: The model.
        inputs: Keyword arguments of a forward pass; tensors are `[batch, ...]`.
    """
    was_training = model.training
    model.eval()  # draws no random numbers
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    model.train(was_training)
    examples = len(next(iter(inputs.values())))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(3 * counter.get_total_flops() / examples, parameters)
