"""Divisions drawn from a block's seed. Nothing of them is stored: the file format fixes them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..splits import derive_seed, hashed_children
from .budget import balanced
from .spec import BlockSpec


def draw_up_children(spec: BlockSpec) -> Tensor:
    """Child of each input under the random split, uint8 `[all parents, inputs]`."""
    seed = derive_seed(spec.seed, "up")
    return torch.from_numpy(hashed_children(seed, spec.all_parents, spec.in_features, spec.alpha))


def draw_down_children(spec: BlockSpec) -> Tensor:
    """Child of each outgoing weight, partitioned fan-out, uint8 `[outputs, all parents]`."""
    seed = derive_seed(spec.seed, "down")
    children = hashed_children(seed, spec.all_parents, spec.out_features, spec.alpha)
    return torch.from_numpy(children).t().contiguous()


def draw_tile_inputs(spec: BlockSpec, tile: int) -> Tensor:
    """Child that reads each input of a tile under the random split, uint8 `[inputs]`."""
    seed = derive_seed(spec.seed, "up", str(tile))
    return torch.from_numpy(hashed_children(seed, 1, spec.in_features, spec.alpha)[0])


def draw_tile_outputs(spec: BlockSpec, tile: int) -> Tensor:
    """Child that writes each output of a tile under a partitioned fan-out, uint8 `[outputs]`."""
    seed = derive_seed(spec.seed, "down", str(tile))
    return torch.from_numpy(hashed_children(seed, 1, spec.out_features, spec.alpha)[0])


def draw_overlapping(parents: int, inputs: int, alpha: int, seed: int) -> Tensor:
    """Inputs that children draw on their own: the control that breaks disjointness on purpose.

    Every child reads as many inputs as under a balanced split, but siblings may read the same ones.

    Returns:
        Which inputs each child reads: bool `[alpha, parents, inputs]`.
    """
    sizes = torch.tensor(balanced(inputs, alpha), dtype=torch.int64, device="cpu")
    ranks = Draws(seed).uniform(alpha, parents, inputs).argsort(-1).argsort(-1)
    return ranks < sizes[:, None, None]
