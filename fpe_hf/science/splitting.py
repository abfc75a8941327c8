"""Expanding batches of networks, and the splits and controls that exist only where there are
clauses, or to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import ConfigError
from ..planning.budget import balanced
from ..planning.draw import draw_overlapping
from ..planning.prune import keep_largest
from ..splits import Split, derive_seed, divide
from .networks import Networks

OVERLAP = "overlap"


def clause_split(clauses: Sequence[Sequence[int]] | Tensor) -> Split:
    """A split that keeps the variables of a clause together (the paper's *clause* split).

    Clauses are dealt out in random order, for every parent anew. Each goes to the child that
    already reads most of its variables, then to the one with most room. All children read equally
    many inputs (up to one), so a clause is cut only if no child has room for the whole of it; what
    inputs are left, in no clause, fill up the children.

    Args:
        clauses: Variables (inputs) of each clause. They may overlap.

    Returns:
        A split to use as it is, or to name by `fpe_hf.register_split`.
    """
    groups = [[int(variable) for variable in clause] for clause in clauses]

    def split(weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
        parents, inputs = weight.shape[-2:]
        draws = Draws(seed)
        rows = [_deal(groups, inputs, alpha, draws) for _ in range(1 if shared else parents)]
        return rows[0] if shared else torch.stack(rows)

    return split


def _deal(clauses: list[list[int]], inputs: int, alpha: int, draws: Draws) -> Tensor:
    children = torch.full((inputs,), -1, dtype=torch.int64, device="cpu")
    room = list(balanced(inputs, alpha))

    def give(variables: list[int], child: int) -> None:
        for variable in variables:
            if room[child] == 0:
                child = max(range(alpha), key=room.__getitem__)
            children[variable] = child
            room[child] -= 1

    def order(count: int) -> list[int]:
        shuffled: list[int] = draws.order(count).tolist()
        return shuffled

    for index in order(len(clauses)):
        clause = clauses[index]
        owners = children[clause].tolist()
        rest = [variable for variable in clause if children[variable] < 0]
        # A random order of the children breaks ties.
        best = max(order(alpha), key=lambda c: (room[c] >= len(rest), owners.count(c), room[c]))
        give(rest, best)
    for variable in order(inputs):
        if children[variable] < 0:
            give([variable], max(order(alpha), key=room.__getitem__))
    return children


def child_masks(split: str | Split, weight: Tensor, alpha: int, seed: int) -> Tensor:
    """Which inputs each child of each parent reads.

    Args:
        split: A registered name, a split, or `"overlap"`: the control that breaks disjointness on
            purpose. Its children read as many inputs as under a random split, but each draws them
            on its own, so siblings overlap and some inputs are read by none.
        weight: The parents' weights `[parents, inputs]`.
        alpha: Children per parent.
        seed: Seed.

    Returns:
        bool `[alpha, parents, inputs]`.
    """
    parents, inputs = weight.shape
    if split == OVERLAP:
        return draw_overlapping(parents, inputs, alpha, seed)
    if callable(split):
        children = split(weight.unsqueeze(0), alpha, seed=seed, shared=False)
    else:
        children = divide(split, weight.unsqueeze(0), alpha, seed=seed, shared=False)
    children = children.expand(parents, inputs)
    return children == torch.arange(alpha, device=children.device)[:, None, None]


def expand(
    networks: Networks,
    alpha: int,
    split: str | Split | Sequence[str | Split] = "random",
    *,
    hidden: Sequence[int] | None = None,
    seed: int = 0,
) -> Networks:
    """Fixed Parameter Expansion of a batch of networks (paper section 3).

    The children of neuron `i` of `h` are the neurons `i, h + i, 2 h + i, ...`. Each has a bias of
    its own, which starts as its parent's. The copies of outgoing weights and of biases are paid
    for by pruning the smallest magnitudes, so every network keeps its `numbers()`.

    Args:
        networks: The parents.
        alpha: Children per parent.
        split: What divides the inputs (see `child_masks`): one for all models, or one per model.
        hidden: Hidden layers to expand, from 0; by default all of them, one after the other.
        seed: Seed; every model and layer derives its own.

    Raises:
        ConfigError: A hidden layer, or the number of splits, does not fit.
    """
    layers = range(len(networks.weights) - 1)
    splits = [split] * len(networks) if isinstance(split, str) or callable(split) else list(split)
    if len(splits) != len(networks):
        raise ConfigError(f"{len(splits)} splits for {len(networks)} models: give one for each.")
    for layer in layers if hidden is None else hidden:
        if layer not in layers:
            raise ConfigError(
                f"hidden={hidden!r}: there is no hidden layer {layer}; accepted: {list(layers)}."
            )
        networks = _expand_layer(networks, alpha, splits, layer, seed)
    return networks


def _expand_layer(
    networks: Networks, alpha: int, splits: Sequence[str | Split], layer: int, seed: int
) -> Networks:
    masked = networks.masked()
    ups, downs = masked.weights[layer], masked.weights[layer + 1]
    parents = ups.shape[1]
    budgets = (networks.masks[layer].sum((1, 2)) + networks.masks[layer + 1].sum((1, 2))).tolist()
    up_masks, down_masks = [], []
    for model, (up, down, budget) in enumerate(zip(ups, downs, budgets, strict=True)):
        keep = budget - (alpha - 1) * parents  # what the children's biases cost
        if keep <= 0:
            raise ConfigError(
                f"alpha={alpha}: {(alpha - 1) * parents} more biases leave none of the {budget} "
                "weights: lower alpha."
            )
        own = derive_seed(seed, str(model), str(layer))
        children = child_masks(splits[model], up, alpha, own)
        (up_mask,), down_mask = keep_largest([up * children], down, alpha, keep)
        up_masks.append(up_mask.flatten(0, 1))
        down_masks.append(down_mask.repeat(1, alpha))
    weights, biases, masks = map(list, (masked.weights, masked.biases, masked.masks))
    weights[layer], weights[layer + 1] = ups.repeat(1, alpha, 1), downs.repeat(1, 1, alpha)
    biases[layer] = biases[layer].repeat(1, alpha)
    masks[layer], masks[layer + 1] = torch.stack(up_masks), torch.stack(down_masks)
    return Networks(tuple(weights), tuple(biases), tuple(masks)).masked()
