"""Training batches of networks side by side, with masks that are fixed or that move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..draws import Draws
from ..errors import ConfigError
from .networks import Networks

_binary = functional.binary_cross_entropy_with_logits

Observer = Callable[[int, Networks], None]


@dataclass(frozen=True)
class MovingMasks:
    """Masks that move: prune the smallest weights of a layer, regrow as many (at zero).

    Attributes:
        regrow: Where: `"gradient"`, the largest gradients (RigL: Evci et al., arXiv 1911.11134),
            or `"random"` (SET: Mocanu et al., arXiv 1707.04780).
        every: Optimizer steps between moves.
        share: Share of a layer's weights moved at first; it falls to 0 as a half cosine.
        until: Part of the training after which masks stay.
    """

    regrow: Literal["gradient", "random"] = "gradient"
    every: int = 50
    share: float = 0.3
    until: float = 0.75

    def __post_init__(self) -> None:
        if self.regrow not in ("gradient", "random"):
            raise ConfigError(f"regrow={self.regrow!r}; accepted: 'gradient', 'random'.")


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: Passes over the examples.
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        drop_connect: Probability with which each weight is left out of a step (DropConnect: Wan et
            al. 2013); those that stay are scaled up accordingly.
        moving: How masks move; `None` leaves them fixed.
        seed: Seed of the order of examples and of whatever else is drawn.
    """

    epochs: int = 25
    batch_size: int = 256
    lr: float = 1e-2
    drop_connect: float = 0.0
    moving: MovingMasks | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not 0.0 <= self.drop_connect < 1.0:
            raise ConfigError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, drop_connect="
                f"{self.drop_connect}: they must be at least 0, at least 1, and 0.0 to below 1.0."
            )


def train(
    networks: Networks,
    x: Tensor,
    y: Tensor,
    how: Training,
    observe: Observer | None = None,
) -> Networks:
    """Trains all networks at once, with Adam on the sum of their losses.

    The losses share no numbers, so each network is trained as if alone. All see the examples in
    the same order. Masked weights never leave zero.

    Args:
        networks: Where to start.
        x: Inputs, `[sets, examples, inputs]`, any dtype (bool takes least memory). The networks
            take the sets in turn: with as many sets as networks each has its own, with one set all
            have the same.
        y: Labels, `[sets, examples]`: 0 or 1 for one output (sigmoid and binary cross-entropy),
            class indices (int64) for several (softmax and cross-entropy).
        how: Settings.
        observe: Called with the step and the networks (live: read only) after each step.

    Returns:
        The trained networks.
    """
    networks = networks.masked()
    weights = [weight.clone().requires_grad_() for weight in networks.weights]
    biases = [bias.clone().requires_grad_() for bias in networks.biases]
    live = Networks(tuple(weights), tuple(biases), tuple(m.clone() for m in networks.masks))
    adam = torch.optim.Adam([*weights, *biases], lr=how.lr)
    draws = Draws(how.seed)
    steps = how.epochs * math.ceil(x.shape[1] / how.batch_size)
    step = 0
    for _ in range(how.epochs):
        for batch in draws.order(x.shape[1]).split(how.batch_size):
            used = _drop(live, how.drop_connect, draws)
            outputs = used(_for_all(x[:, batch].float(), live))
            loss = _loss(outputs, _for_all(y[:, batch], live))
            adam.zero_grad()
            loss.backward()
            step += 1
            _move(live, adam, how.moving, step, steps, draws)
            for weight, mask in zip(weights, live.masks, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(mask)
            adam.step()
            if observe is not None:
                observe(step, live)
    detach = (tuple(t.detach() for t in ts) for ts in (weights, biases, live.masks))
    return Networks(*detach)


@torch.no_grad()
def predict(networks: Networks, x: Tensor) -> Tensor:
    """Predicted classes, int64 `[models, examples]`."""
    outputs = networks(_for_all(x.float(), networks))
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def accuracy(networks: Networks, x: Tensor, y: Tensor) -> Tensor:
    """Share of right predictions, float `[models]`."""
    return (predict(networks, x) == _for_all(y.long(), networks)).float().mean(1)


def _for_all(examples: Tensor, networks: Networks) -> Tensor:
    """`[sets, ...]` -> `[models, ...]`."""
    if len(examples) == 1:
        return examples.expand(len(networks), *examples.shape[1:])
    repeats = len(networks) // len(examples)
    return examples if repeats == 1 else examples.repeat(repeats, *[1] * (examples.dim() - 1))


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean over examples, sum over models."""
    if outputs.shape[-1] == 1:
        losses = _binary(outputs[..., 0], y.float(), reduction="none")
    else:
        losses = functional.cross_entropy(outputs.mT, y, reduction="none")
    return losses.mean(1).sum()


def _drop(networks: Networks, rate: float, draws: Draws) -> Networks:
    if rate == 0.0:
        return networks
    weights = tuple(
        weight * (draws.uniform(*weight.shape) >= rate) / (1 - rate) for weight in networks.weights
    )
    return replace(networks, weights=weights)


def _move(
    networks: Networks,
    adam: torch.optim.Adam,
    how: MovingMasks | None,
    step: int,
    steps: int,
    draws: Draws,
) -> None:
    """Moves the masks of all layers, in place, if it is time; counts per layer stay."""
    if how is None or step % how.every or step > how.until * steps:
        return
    share = how.share * 0.5 * (1 + math.cos(math.pi * step / (how.until * steps)))
    for weight, mask in zip(networks.weights, networks.masks, strict=True):
        assert weight.grad is not None
        candidates = weight.grad.abs()
        if how.regrow == "random":
            candidates = draws.uniform(*weight.shape)
        moved = move_mask(weight.detach(), mask, candidates, share)
        fresh = moved & ~mask
        mask.copy_(moved)
        with torch.no_grad():
            weight.mul_(moved)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in adam.state[weight]:
                adam.state[weight][moment].masked_fill_(fresh | ~moved, 0.0)


def move_mask(weight: Tensor, mask: Tensor, candidates: Tensor, share: float) -> Tensor:
    """Prunes the smallest `share` of each model's weights and regrows as many elsewhere.

    Args:
        weight: `[models, outputs, inputs]`.
        mask: Which exist, bool.
        candidates: Scores, at least 0; the highest of those that do not exist are grown.
        share: Share of the existing weights to move, as far as there is room.

    Returns:
        The new mask; each model has as many weights as before.
    """
    existing = mask.flatten(1)
    total = existing.sum(1, keepdim=True)
    count = torch.minimum((share * total).long(), existing.shape[1] - total)
    magnitude = weight.abs().flatten(1).masked_fill(~existing, torch.inf)
    dropped = _rank(magnitude) < count
    scores = candidates.flatten(1).masked_fill(existing, -torch.inf)
    grown = _rank(-scores) < count
    return (existing & ~dropped | grown).view_as(mask)


def _rank(keys: Tensor) -> Tensor:
    """Rank of each entry in its row, from the smallest."""
    return keys.argsort(stable=True, dim=1).argsort(1)
