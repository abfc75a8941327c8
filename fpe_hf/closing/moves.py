"""Masks that move under a fixed budget: the smallest weights go, as many others come.

By the magnitude of their gradient (RigL: Evci et al. 2020) or at random (SET: Mocanu et al. 2018).
Children of a parent never come to share an input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..draws import Draws
from ..planning.prune import keep_largest
from .block import OpenBlock

GRADIENT, RANDOM = "gradient", "random"
MOVES = (GRADIENT, RANDOM)


@torch.no_grad()
def move(block: OpenBlock, share: float, draws: Draws | None) -> list[Tensor]:
    """Exchanges a share of the weights that are alive for others, which start at zero.

    Args:
        block: The block; its gradients are needed if nothing is drawn.
        share: How many, 0 to 1.
        draws: Where to draw from; `None` to go by gradients.

    Returns:
        For each matrix, up projections first, which of its weights start anew: bool masks.
    """
    anew = [torch.zeros_like(layer.mask) for layer in block.layers]
    for expert in range(block.spec.experts):
        ups, down = block.magnitudes(expert)
        count = sum(int(own.count_nonzero()) for own in (*ups, down))
        stay_ups, stay_down = keep_largest(ups, down, 1, count - int(share * count))
        scores = [_score(block, place, expert, draws) for place in range(len(block.layers))]
        places = _free(stay_ups, scores[:-1])
        fresh = [torch.where(free, score, 0.0) for free, score in zip(places, scores, strict=False)]
        fresh_down = torch.where(stay_down, 0.0, scores[-1])
        come_ups, come_down = keep_largest(fresh, fresh_down, 1, int(share * count))
        alive_ups = [stay | come for stay, come in zip(stay_ups, come_ups, strict=True)]
        block.keep(expert, alive_ups, stay_down | come_down)
        # What went and comes again starts anew, as all others do.
        for layer, own, come in zip(block.layers, anew, (*come_ups, come_down), strict=True):
            layer.by_child(own)[:, expert].copy_(come)
    for layer, own in zip(block.layers, anew, strict=True):
        layer.weight.masked_fill_(own, 0.0)
        layer.kill()
    return anew


def _score(block: OpenBlock, place: int, expert: int, draws: Draws | None) -> Tensor:
    """How much each weight of a matrix deserves to come: above zero."""
    layer = block.layers[place]
    if draws is None:
        gradient = layer.weight.grad
        assert gradient is not None
        own = layer.by_child(gradient)[:, expert].float().abs()
        return own.clamp_min(torch.finfo(torch.float32).tiny)
    shape = layer.by_child(layer.mask)[:, expert].shape
    return (1.0 - draws.uniform(*shape)).to(layer.weight.device)


def _free(stay: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
    """Where weights of up projections may come: at the child that reads an input already, or where
    none does at the child whose weights deserve it most, gate and up together."""
    readers = torch.cat(list(stay)).any(0)
    best = torch.cat(list(scores)).sum(0).argmax(0)
    child = torch.arange(len(readers), dtype=torch.int64, device=best.device).view(-1, 1, 1)
    allowed = torch.where(readers.any(0), readers, child == best)
    return [allowed & ~own for own in stay]
